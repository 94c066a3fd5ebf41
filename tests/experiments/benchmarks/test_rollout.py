"""The rollout benchmark on a small policy: its works, turns, ratios and limit."""

import dataclasses
import json
import pathlib
import sys

import numpy as np
import pytest

from agenticrec_jax.generation.requests import Rollout
from agenticrec_jax.types import OBSERVATION, SAMPLED
from experiments.benchmarks import figures, peers, rollout, rollout_limit, rollout_occupancy
from experiments.benchmarks.turns import saving, timings

TINY = dataclasses.replace(
    rollout.REFERENCE,
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
)
COMMITTED = pathlib.Path(rollout.__file__).parent / "results" / "rollout.json"
WORK = rollout.Work("talk", 3, (12, 12), 3, 5, (4, 4), least=2.0)


@pytest.fixture(scope="module")
def ours():
    return rollout.Ours(TINY)


@pytest.mark.parametrize("changes", [{}, {"shared": True}, {"top_p": 0.5}])
def test_a_work_has_its_turns_and_observations(ours, changes):
    work = dataclasses.replace(WORK, name=str(changes), **changes)
    prompts, observations = work.draw(97, 0)
    assert len({tuple(ids) for ids in prompts}) == (1 if work.shared else 3)
    answer = ours.rollout(work, prompts, observations, seed=0)
    assert answer["sampled"] == 3 * 3 * 5 and answer["compilations"] > 0 and answer["cpu"] > 0
    for row, finished in enumerate(answer["rollouts"]):
        assert len(finished.ids) == 3 * 5 + 2 * 4
        segments = np.split(finished.origin == SAMPLED, np.cumsum([5, 4, 5, 4]))
        assert [segment.all() for segment in segments] == [True, False, True, False, True]
        for turn in range(2):
            observed = finished.ids[5 + 9 * turn : 9 + 9 * turn].tolist()
            assert observed == observations[turn][row]
    again = ours.rollout(work, prompts, observations, seed=1)
    assert again["compilations"] == 0
    if work.top_p == 1:
        assert rollout.rescored(ours.model, prompts, answer["rollouts"]) < 1e-4
        answer["rollouts"][1].logprobs[-1] += 0.01
        assert rollout.rescored(ours.model, prompts, answer["rollouts"]) > 0.009


def test_turns_alternate_and_the_first_is_reported_alone(ours, peer):
    turns = rollout.take_turns(WORK, ours, [peer], range(4))
    assert [request["seed"] for request in peer.requests] == [0, 1, 2, 3]
    assert len({str(request["prompts"]) for request in peer.requests}) == 1
    assert peer.requests[0]["columns"] == 32 + 5  # 12 + 2 x 9 tokens before the last turn
    for cpu, turn in zip((1000.0, 4.0, 2.0, 3.0), turns, strict=True):
        turn[0]["cpu"] = cpu
    rows = {row["name"]: row for row in timings("talk", turns, 0, {1: "them"})}
    assert (rows["talk: CPU"]["ours"], rows["talk: CPU"]["peer"]) == (3.0, 10.0)
    assert rows["talk: CPU of the first turn"]["ours"] == 1000.0
    saved = saving("talk", turns, 0, 1, "them", WORK.least)
    assert (saved["ours"], saved["bound"]) == (3.333, 2.0)
    alone = timings("talk", turns, 0, {})
    assert {row["peer"] for row in alone} == {None} and len(alone) == 5


@pytest.mark.slow
def test_mixed_lengths_compile_once(ours, peer, monkeypatch):
    monkeypatch.setattr(rollout, "CALLS", 4)
    work = dataclasses.replace(rollout.MIXED, prompt=(9, 20), observed=(2, 9), new=6)
    turns = rollout.take_turns(work, ours, [peer], range(2 * rollout.CALLS))
    declared = ours.engine(work).shapes.buckets({1})
    assert declared["prompt_tokens"] == (10, 20) and declared["splice_tokens"] == (5, 10)
    rows = {row["name"]: row for row in rollout.mixed_figures(turns, "them", declared)}
    assert rows["mixed lengths: compilations, first run"]["ours"] > 0
    assert rows["mixed lengths: compilations, second run"]["ours"] == 0
    assert rows["mixed lengths: compilations, second run"]["peer"] == 4 * rollout.CALLS
    assert rows["mixed lengths: log-probs scored again"]["ours"] < 100


def test_the_limit_is_bytes_or_operations_by_hand():
    shape = dataclasses.replace(TINY, tie_word_embeddings=True)
    attention = 32 * (4 + 2 + 2 + 4) * 8
    matrices = 2 * (attention + 3 * 32 * 48)
    assert rollout_limit.matrices(shape) == matrices
    weights = matrices + 97 * 32
    cached = 2 * 2 * 2 * 8 * 20
    sizes = {"rows": 3, "read": 50, "steps": 7, "length": 20}
    for operations, bandwidth in ((1e9, 1e30), (1e30, 1e9)):
        least = rollout_limit.least_cpu(shape, **sizes, operations=operations, bandwidth=bandwidth)
        compute = 2 * 50 * matrices / 1e9 + 7 * 2 * 3 * weights / 1e9
        memory = 7 * 4 * (weights + 3 * cached) / 1e9
        assert least == pytest.approx(compute if operations < 1e30 else memory)


@pytest.mark.parametrize("shared", [False, True])
def test_the_limit_counts_a_shared_prompt_once(shared, monkeypatch):
    """Three turns of 5 tokens, 4 of each decoded; of 2 observations of 4 and the pause 5 read."""
    charged = []
    monkeypatch.setattr(rollout_limit, "least_cpu", lambda *a: charged.append(a) or 2.0)
    work = dataclasses.replace(WORK, shared=shared)
    least = rollout.limit(TINY, work, 1e9, 2e9)
    read = 12 * (1 if shared else 3) + 3 * 2 * 5
    length = 12 + (3 * 5 + 2 * 4) / 2
    assert charged == [(TINY, 3, read, 3 * 4, length, 1e9, 2e9)]
    turns = [[{"cpu": cpu, "rescored": 1e-6}] for cpu in (9.0, 3.0)]
    rows = [(row["unit"], row["ours"]) for row in rollout.bounds(work, turns, least)]
    assert rows[:2] == [("CPU-s", 2.0), ("times its CPU", 1.5)]


def test_rates_and_settings_are_written(tmp_path):
    path = tmp_path / "rollout.json"
    figures.publish(lambda: rollout_limit.figures(6e10, 9e9), str(path), settings={"repeats": 3})
    written = json.loads(path.read_text())
    assert written["settings"] == {"repeats": 3}
    assert [row["ours"] for row in written["rows"]] == [60.0, 9.0]


def test_the_committed_figures_are_within_their_bounds():
    rows = json.loads(COMMITTED.read_text())["rows"]
    bounded = {row["name"]: row for row in rows if row["bound"] is not None}
    savings = {work.name: work.least for work in rollout.WORKS}
    assert list(savings.values()) == [1.4, 1.5, 3.8, 5.4]
    for name, least in savings.items():
        (saved,) = (row for of, row in bounded.items() if of.startswith(f"{name}: CPU of "))
        assert saved["unit"] == "times ours" and saved["bound"] == least
    for order in ("deterministic", "eager"):
        assert bounded[f"occupancy, {order}: slot-steps that keep a token"]["bound"] == 0.85
    for row in bounded.values():
        most = row["unit"] == "millionths"  # of a difference; the others are at least
        assert row["ours"] <= row["bound"] if most else row["ours"] >= row["bound"], row


def test_lock_step_waits_for_the_longest_turn():
    def talk(*lengths):
        origin = sum(([SAMPLED] * n + [OBSERVATION] * 2 for n in lengths), [])[:-2]
        blank = np.zeros(len(origin))
        return Rollout(blank, blank, np.array(origin, np.uint8), "stop")

    rollouts = [talk(3, 1), talk(5), talk(2, 2, 6)]
    assert rollout_occupancy.turn_lengths(rollouts[2]) == [2, 2, 6]
    # two slots: turns of 5 and 1 steps, then a batch of one row with 2 + 2 + 6
    assert rollout_occupancy.lock_step(rollouts, 2) == pytest.approx(19 / (2 * (5 + 1 + 10)))


@pytest.mark.slow
def test_occupancy_counts_steps_that_were_decoded():
    shape = dataclasses.replace(TINY, tie_word_embeddings=False)
    settings = {"row_buckets": (4,), "window_buckets": (400,), "deterministic": False}
    rows = rollout_occupancy.measure(shape, 4, 24, 0.01, {"groups": (2, settings, 0.25)})
    assert [row["bound"] for row in rows if row["bound"]] == [0.25]
    shares = {row["name"].removeprefix("occupancy, groups: "): row["ours"] for row in rows}
    assert 0.3 < shares["slot-steps that keep a token"] <= 1
    assert 0.3 < shares["computed row-steps that keep a token"] <= 1
    assert shares["sampled"] > 24 * 5 and shares["dispatches"] < 1
    assert shares["95th percentile of lengths"] > 1.5


@pytest.mark.peer
def test_transformers_runs_the_works(ours):
    shape = rollout.json.dumps(dataclasses.asdict(TINY))
    with peers.Peer("torch_python", sys.executable, "rollout_transformers.py", shape, "1") as peer:
        [turn] = rollout.take_turns(WORK, ours, [peer], [0])
        assert turn[1]["sampled"] == turn[0]["sampled"] == 45 and turn[1]["cpu"] > 0
        size = peer.ask(work="versions")["size"]
    assert size == sum(x.size for x in rollout.jax.tree.leaves(rollout.nnx.state(ours.model)))
