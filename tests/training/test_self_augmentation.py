import dataclasses

import numpy as np
import pytest

from agenticrec_jax.agent.trajectories import CallRecord, Trajectory
from agenticrec_jax.training.mining import write_lines
from agenticrec_jax.training.packing import Packing
from agenticrec_jax.training.self_augmentation import (
    RULES,
    Imitation,
    Rules,
    learning_forced,
    read_groups,
    select,
)
from agenticrec_jax.types import OBSERVATION, SAMPLED, STOP


def call(name="user", **arguments):
    return CallRecord(name, arguments, "said", True, 0.0)


def trajectory(member=0, rank=1, calls=None, example_id=3, invalid_reason=None):
    """Five tokens, of which the third and fourth were observed."""
    origin = np.array([SAMPLED, SAMPLED, OBSERVATION, OBSERVATION, SAMPLED], np.uint8)
    ids = 10 * member + np.arange(5, dtype=np.int32) + 1
    return Trajectory(
        example_id,
        member,
        "rank",
        np.array([7, 8], np.int32),
        ids,
        np.where(origin == SAMPLED, -0.5, 0).astype(np.float32),
        origin,
        [call()] if calls is None else calls,
        STOP,
        (1, 2, 3) if invalid_reason is None else None,
        None,
        invalid_reason,
        rank,
    )


def test_a_forced_call_is_learned_where_its_tool_answered():
    """The ids before the first sampled one; what the tools returned stays as it is."""
    forced = np.array([OBSERVATION, OBSERVATION, SAMPLED, OBSERVATION, SAMPLED], np.uint8)
    began = dataclasses.replace(trajectory(), origin=forced)
    learned = learning_forced(began)
    assert learned.origin.tolist() == [SAMPLED, SAMPLED, SAMPLED, OBSERVATION, SAMPLED]
    assert began.origin.tolist() == forced.tolist() and learned.ids is began.ids
    plain = trajectory()
    assert learning_forced(plain) is plain
    for calls in ([], [dataclasses.replace(call(), ok=False), call("item")]):
        refused = dataclasses.replace(began, calls=calls)
        assert learning_forced(refused) is refused


def calls_of(count):
    return [call(k=i) for i in range(count)]


@pytest.mark.parametrize(
    "rule, fault, mended",
    [
        ("invalid", {"invalid_reason": "no_answer"}, {}),
        ("too_few_calls", {"calls": []}, {"calls": calls_of(1)}),
        ("too_many_calls", {"calls": calls_of(9)}, {"calls": calls_of(8)}),
        (
            "repeated_call",
            {"calls": [call(a=1, b=2), call("item"), call(b=2, a=1)]},
            {"calls": [call(a=1, b=2), call("item"), call(b=1, a=2)]},
        ),
        ("low_rank", {"rank": 3}, {"rank": 2}),
        ("low_rank", {"rank": None}, {"rank": 1}),
    ],
)
def test_each_rule_drops_what_breaks_it_alone(rule, fault, mended):
    bad, good = trajectory(0, **fault), trajectory(1, **mended)
    selected, dropped = select([[bad, good]], Rules())
    assert [t.member for t in selected[0]] == [1]
    assert dropped == {name: int(name == rule) for name in RULES}


def test_the_rules_are_options():
    rules = Rules(max_calls=2, min_calls=0, best_rank=4, per_example=1)
    group = [trajectory(0, 5), trajectory(1, 4, calls_of(3)), trajectory(2, 4, [])]
    selected, dropped = select([group], rules)
    assert [t.member for t in selected[0]] == [2]
    assert dropped["low_rank"] == dropped["too_many_calls"] == 1


def test_the_first_broken_rule_is_counted():
    _, dropped = select([[trajectory(rank=9, calls=[], invalid_reason="no_answer")]], Rules())
    assert +dropped == {"invalid": 1}


def test_the_best_of_a_group_are_kept_whatever_their_order():
    group = [
        trajectory(0, 2, calls_of(1)),
        trajectory(1, 1, calls_of(3)),
        trajectory(2, 1, calls_of(2)),
        trajectory(3, 1, calls_of(2)),
        trajectory(4, 1, calls_of(4)),
    ]
    for order in (group, group[::-1], group[2:] + group[:2]):
        selected, dropped = select([order], Rules())
        assert [t.member for t in selected[0]] == [2, 3]
        assert +dropped == {"surplus": 3}


def test_kept_and_dropped_are_all_there_were():
    rng = np.random.default_rng(0)
    groups = [
        [
            trajectory(
                m,
                int(rng.integers(1, 5)),
                calls_of(int(rng.integers(0, 11))) + [call(k=0)] * int(rng.integers(2)),
                i,
                rng.choice([None, None, None, "no_answer"]),
            )
            for m in range(8)
        ]
        for i in range(20)
    ]
    selected, dropped = select(groups, Rules())
    assert len(selected) == 20 and max(map(len, selected)) == 2
    assert all(t.example_id == i for i, group in enumerate(selected) for t in group)
    assert set(dropped) == set(RULES) and all(dropped.values())
    assert sum(map(len, selected)) + dropped.total() == 160


def test_batches_have_the_ids_as_sampled_and_no_observation_in_the_loss():
    source = Imitation([trajectory(m) for m in range(5)], epochs=3, size=4, seed=1)
    assert source.steps == 4
    labels = [source.progress_label(step) for step in range(4)]
    assert labels == ["epoch 1", "epoch 1", "epoch 2", "epoch 3"]
    seen = []
    for step in range(4):
        (batch,) = source.batches(step, Packing(1000))
        (again,) = source.batches(step, Packing(1000))
        assert np.array_equal(batch.completions, again.completions)
        rows = batch.weights[:, 0] > 0
        ids, counted = batch.completions[rows, 0, :5], batch.sampled[rows, 0, :5]
        assert np.array_equal(counted, np.tile([1, 1, 0, 0, 1], (len(ids), 1)))
        total = (batch.sampled * batch.weights[..., None]).sum()
        assert total == pytest.approx(1.0)
        assert np.array_equal(ids, ids[:, :1] + np.arange(5))
        seen += (ids[:, 0] // 10).tolist()
    passes = [seen[i : i + 5] for i in (0, 5, 10)]
    assert all(sorted(members) == list(range(5)) for members in passes)
    assert passes[0] != passes[1]


def test_a_file_of_rollouts_comes_back_in_groups(tmp_path):
    groups = [[trajectory(m, example_id=i) for m in range(3)] for i in (4, 9)]
    path = tmp_path / "00000.jsonl"
    write_lines(path, [t.to_json() for group in groups for t in group])
    actual = read_groups(path, 3)
    assert [[(t.example_id, t.member) for t in group] for group in actual] == [
        [(i, m) for m in range(3)] for i in (4, 9)
    ]
    fields = [f.name for f in dataclasses.fields(Trajectory)]
    for a, b in zip(sum(groups, []), sum(actual, []), strict=True):
        assert all(np.array_equal(getattr(a, n), getattr(b, n)) for n in fields)
    assert [p.name for p in tmp_path.iterdir()] == ["00000.jsonl"]
