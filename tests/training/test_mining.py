import dataclasses
import types
from collections import Counter
from pathlib import Path

import pytest

from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.training import mining

EXAMPLE = RankingExample(9, 0, 9, 0, (1, 2), tuple(range(100, 120)), 104, "policy")


def _ranked(ranking, rank, example_id=9, valid=True):
    return types.SimpleNamespace(example_id=example_id, ranking=ranking, rank=rank, valid=valid)


def test_only_valid_misplaced_targets_give_a_pair():
    ten = (5, 1, 2, 3, 4, 6, 7, 8, 9, 10)
    trajectories = [_ranked(ten, 1), _ranked(None, None, valid=False)]
    assert mining.mine_pairs(trajectories, {9: EXAMPLE}, 0) == []


def test_the_negative_stands_above_the_target():
    seen = Counter()
    for seed in range(300):
        (pair,) = mining.mine_pairs([_ranked((7, 3, 5, 1), 3)], {9: EXAMPLE}, seed)
        assert pair.positive == 104
        seen[pair.negative] += 1
    assert set(seen) == {106, 102} and min(seen.values()) > 100


def test_a_missed_target_draws_from_the_whole_list():
    ten = (1, 2, 3, 4, 6, 7, 8, 9, 10, 11)
    seen = {
        mining.mine_pairs([_ranked(ten, None)], {9: EXAMPLE}, seed)[0].negative
        for seed in range(300)
    }
    assert seen == {99 + n for n in ten}


def test_each_pair_asks_more_and_less_in_random_order():
    pairs = [mining.HardPair(9, 104, 100 + n) for n in range(4)]
    firsts = Counter()
    for seed in range(100):
        tasks = mining.preference_tasks(pairs, {9: EXAMPLE}, seed)
        assert [task.kind for task in tasks] == ["more", "less"] * 4
        for task in tasks:
            assert 104 in task.example.candidates and len(task.example.candidates) == 2
            firsts[task.kind, task.example.target_number] += 1
    assert all(count > 140 for count in firsts.values()) and len(firsts) == 4


EXAMPLES = {9: EXAMPLE, 10: dataclasses.replace(EXAMPLE, example_id=10)}


def test_a_pair_need_not_be_about_the_target():
    tasks = mining.preference_tasks([mining.HardPair(9, 117, 110)], {9: EXAMPLE}, 0)
    assert all(task.example.candidates[task.example.target_number - 1] == 117 for task in tasks)


def test_pair_files_read_back(tmp_path):
    pairs = [mining.HardPair(9, 104, 101), mining.HardPair(10, 104, 119)]
    mining.write_pairs(tmp_path / "pairs.jsonl", pairs)
    assert mining.read_pairs(tmp_path / "pairs.jsonl", EXAMPLES) == pairs
    assert mining.pairs_hash(pairs) != mining.pairs_hash(pairs[::-1])


GOOD = '{"example_id": 9, "positive": 104, "negative": 101}'


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{9, 104, 101}", ["{9, 104, 101}", "example_id, positive, negative"]),
        ("[9, 104, 101]", ["[9, 104, 101]", "example_id, positive, negative"]),
        (GOOD.replace("negative", "worse"), ["worse", "example_id, positive, negative"]),
        (GOOD.replace("9", "[9]"), ["[9]", "example_id, positive, negative"]),
        (GOOD.replace("9", "8"), ["example_id 8"]),
        (GOOD.replace("101", "120"), ["104", "120", "example 9"]),
        (GOOD.replace("101", "104"), ["104", "example 9"]),
        (GOOD.replace("101", "[104]"), ["104", "[104]", "example 9"]),
    ],
)
def test_a_line_that_is_no_pair_is_refused_by_its_number(tmp_path, line, named):
    path = tmp_path / "pairs.jsonl"
    path.write_text(f"{GOOD}\n{line}\n")
    assert_names(refused(mining.read_pairs, path, EXAMPLES), f"{path}, line 2: ", *named)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    path = tmp_path / "pairs.jsonl"
    assert_names(refused(mining.read_pairs, path, EXAMPLES), path, "No such file")


def test_pairs_whose_writing_was_cut_off_are_none(tmp_path, monkeypatch):
    """A stage that finds the file reads it and mines no more, so it must never be half there."""
    path, write = tmp_path / "pairs.jsonl", Path.write_text

    def half(self, text, encoding):
        write(self, text[: len(text) // 2], encoding)
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", half)
        with pytest.raises(OSError):
            mining.write_pairs(path, [mining.HardPair(9, 104, 101), mining.HardPair(10, 4, 1)])
    assert not path.exists()
    mining.write_pairs(path, [mining.HardPair(9, 104, 101)])
    assert mining.read_pairs(path, EXAMPLES) == [mining.HardPair(9, 104, 101)]
