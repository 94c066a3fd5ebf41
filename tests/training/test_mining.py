import dataclasses
import types
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from agenticrec_jax.agent.trajectories import CallRecord, Trajectory
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.training import mining
from agenticrec_jax.types import OBSERVATION, SAMPLED

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


def test_one_ranking_gives_the_draw_of_the_paper():
    """As Eq. 3 says: uniformly from the items above the target, or from the whole list."""
    ten = (5, 1, 2, 3, 4, 6, 7, 8, 9, 10)
    rankings = [_ranked(ten, 1 + n, example_id=n) for n in range(1, 10)]
    rankings += [_ranked((11, *ten[1:]), None, example_id=n) for n in range(10, 30)]
    examples = {n: dataclasses.replace(EXAMPLE, example_id=n) for n in range(1, 30)}
    for seed in (0, 7):
        drawn = mining.mine_pairs(rankings, examples, seed)
        assert [pair.example_id for pair in drawn] == list(range(1, 30))
        for pair, ranking in zip(drawn, rankings, strict=True):
            above = ranking.ranking[: ranking.rank - 1 if ranking.rank else None]
            rng = np.random.default_rng((seed, ranking.example_id))
            assert pair.negative == 99 + rng.choice(above)
            assert pair.violation == 1 and pair.decidable is None


# Of four rankings one is invalid, one has the target (number 5) first and one misses it.
SEVERAL = [
    _ranked((5, 2, 3), 1),
    _ranked((2, 7, 5), 3),
    _ranked(None, None, valid=False),
    _ranked((7, 1, 4), None),
]
ORDERS = {9: [(8, 5, 7), (1, 2, 9)]}  # of which the first has 5 above 7, and above 1, 2 and 4
BELOW = {9: [(7, 1, 5, 4)]}


def test_the_violation_is_the_share_of_valid_rankings_that_have_the_negative_above():
    pools = mining.violated_pairs(SEVERAL, {9: EXAMPLE})
    shares = {pair.negative - 99: pair.violation for pair in pools[9]}
    assert shares == {2: 1 / 3, 7: 2 / 3, 1: 1 / 3, 4: 1 / 3}
    assert all(pair.positive == 104 and pair.decidable is None for pair in pools[9])


def test_a_pair_is_decidable_by_any_order_that_has_the_target_above():
    for orders, expected in ((ORDERS, {1, 2, 4, 7}), (BELOW, {2, 4}), ({}, set())):
        pools = mining.violated_pairs(SEVERAL, {9: EXAMPLE}, orders)
        decidable = {pair.negative - 99 for pair in pools[9] if pair.decidable}
        assert decidable == expected
        assert {type(pair.decidable) for pair in pools[9]} == {bool}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (mining.UNIFORM, {1, 2, 4, 7}),
        (mining.PairRule(low=0.5, high=0.7), {7}),
        (mining.PairRule(low=0.1, high=0.4), {1, 2, 4}),
        (mining.PairRule(decidable=True), {2, 4}),
        (mining.PairRule(high=0.4, decidable=True), {2, 4}),
        (mining.PairRule(low=0.5, decidable=True), set()),
    ],
)
def test_a_rule_draws_uniformly_from_the_pairs_that_it_takes(rule, expected):
    drawn = Counter()
    for seed in range(200):
        for pair in mining.mine_pairs(SEVERAL, {9: EXAMPLE}, seed, rule=rule, orders=BELOW):
            drawn[pair.negative - 99] += 1
    assert set(drawn) == expected
    assert not drawn or min(drawn.values()) > 0.6 * max(drawn.values())


def _trajectory(turns, observations):
    """A trajectory of the bytes of its turns; (origin, text) pairs."""
    ids = [np.frombuffer(text.encode(), np.uint8) for _, text in turns]
    origins = [np.full(len(i), origin) for (origin, _), i in zip(turns, ids, strict=True)]
    return Trajectory(
        example_id=9,
        member=0,
        task="rank",
        prompt=np.zeros(0, np.int32),
        ids=np.concatenate(ids),
        logprobs=np.zeros(sum(map(len, ids)), np.float32),
        origin=np.concatenate(origins).astype(np.uint8),
        calls=[CallRecord("get_similar_items", {}, text, True, 0.0) for text in observations],
        finish="stop",
    )


def test_visible_orders_are_those_of_observations_and_of_drafts_in_thoughts():
    observed = "near h3: Labels; similar:7,3,12,"
    turns = [
        (SAMPLED, "<think>titles say draft:4,9,</think><tool_call>"),
        (OBSERVATION, "similar:7,3, draft:1,2,"),  # cut to the policy's budget; data forges none
        (SAMPLED, "<think>rank by similar:7,.. now draft:9,4,1,</think>"),
    ]
    orders = mining.visible_orders(
        _trajectory(turns, [observed, "taken:5,"]), lambda ids: bytes(ids.tolist()).decode()
    )
    assert orders == [(7, 3, 12), (5,), (4, 9), (9, 4, 1)]


def test_held_out_examples_are_a_share_whatever_their_order():
    ids = list(range(40))
    chosen = mining.held_out_ids(ids, 0.3, seed=2)
    assert len(chosen) == 12 and chosen < set(ids)
    assert chosen == mining.held_out_ids(ids[::-1], 0.3, seed=2)
    assert chosen != mining.held_out_ids(ids, 0.3, seed=3)
    assert mining.held_out_ids(ids, 0.0, seed=2) == mining.held_out_ids([], 0.5, 2) == frozenset()


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
    pairs += [mining.HardPair(9, 104, 102, violation=0.375, decidable=False)]
    mining.write_pairs(tmp_path / "pairs.jsonl", pairs)
    assert mining.read_pairs(tmp_path / "pairs.jsonl", EXAMPLES) == pairs
    assert mining.pairs_hash(pairs[2:]) == mining.pairs_hash([mining.HardPair(9, 104, 102)])
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
    path, write = tmp_path / "pairs.jsonl", Path.write_bytes

    def half(self, content):
        write(self, content[: len(content) // 2])
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", half)
        with pytest.raises(OSError):
            mining.write_pairs(path, [mining.HardPair(9, 104, 101), mining.HardPair(10, 4, 1)])
    assert not path.exists()
    mining.write_pairs(path, [mining.HardPair(9, 104, 101)])
    assert mining.read_pairs(path, EXAMPLES) == [mining.HardPair(9, 104, 101)]
