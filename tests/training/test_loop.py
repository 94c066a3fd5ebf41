"""One whole stage on a tiny world: on one device, resumed, and on a mesh of eight."""

import copy
import dataclasses
import threading
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agenticrec_jax.agent.answers import ranking_constraint
from agenticrec_jax.agent.episodes import Agent
from agenticrec_jax.losses import group_advantages
from agenticrec_jax.parallel.mesh import make_mesh
from agenticrec_jax.runtime.checkpoints import Checkpoints
from agenticrec_jax.runtime.metric_logging import MetricsWriter
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.metrics import timeless
from agenticrec_jax.testing.stages import PROMPTS, tiny_stage
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.training.mining import HardPair
from agenticrec_jax.training.tasks import ranking_tasks, refinement_tasks
from agenticrec_jax.types import OBSERVATION, SAMPLED

MEMBERS = 4


def test_the_metrics_are_those_of_the_trajectories(single):
    assert [line["step"] for line in single.lines] == [1, 2]
    assert len(single.trajectories) == 2 * PROMPTS * MEMBERS
    for index, line in enumerate(single.lines):
        rows = single.trajectories[index * PROMPTS * MEMBERS :][: PROMPTS * MEMBERS]
        rewards = np.array([t.reward.total for t in rows]).reshape(PROMPTS, MEMBERS)
        sampled = sum((t.origin == SAMPLED).sum() for t in rows)
        assert line["reward"] == pytest.approx(rewards.mean(), rel=1e-5)
        spread = np.abs(rewards - rewards.mean(axis=1, keepdims=True)).mean()
        assert line["advantage_spread"] == pytest.approx(spread, rel=1e-5) and spread > 0.02
        assert line["sampled_tokens"] == pytest.approx(sampled / len(rows))
        assert line["tool_calls"] == line["calls/refused"] > 0
        assert line["groups_dropped"] == 0 and line["updates_skipped"] == 0
        assert 0 < line["engine/occupancy"] <= line["engine/row_occupancy"] <= 1
        assert line["engine/decode_tokens_per_s"] > 0 < line["engine/splice_tokens_per_s"]
        shares = [line[f"time_share/{work}"] for work in ("rollout", "tools", "update")]
        assert sum(shares) == pytest.approx(1) and min(shares) >= 0
        seconds = line["seconds/rollout"] + line["seconds/update"]
        assert line["tokens_per_s"] * seconds == pytest.approx(sampled)
        assert {"loss", "entropy", "ratio", "ratio_spread", "gradient_norm"} <= set(line)


def test_advantages_of_ones_own_reach_the_update_of_every_step(pieces, single, tmp_path):
    """The paper's as a function train the same weights; twice as large, they double a gradient."""
    same = pieces.run(tmp_path / "same", advantage_fn=group_advantages)
    for leaf, other in zip(same.params, single.params, strict=True):
        np.testing.assert_array_equal(leaf, other)

    def doubled(rewards, mask):
        return 2 * group_advantages(rewards, mask)

    (line,) = pieces.run(tmp_path / "doubled", steps=1, advantage_fn=doubled).lines
    assert line["gradient_norm"] == pytest.approx(2 * single.lines[0]["gradient_norm"], rel=1e-4)
    assert line["advantage_spread"] == pytest.approx(2 * single.lines[0]["advantage_spread"])


def test_a_step_is_one_short_line_and_the_rest_of_it_is_in_the_file(pieces, tmp_path, capsys):
    lines = pieces.run(tmp_path).lines
    first, *steps = capsys.readouterr().out.splitlines()
    assert first == "tiny: 0/2 steps" and len(steps) == 2
    for step, (line, printed) in enumerate(zip(lines, steps, strict=True), 1):
        assert printed.startswith(f"tiny: {step}/2 steps, ") and len(printed) < 100
        numbers = ("reward", line["reward"]), ("valid", line["valid"])
        note = " ".join(f"{name} {value:.3f}" for name, value in numbers)
        assert printed.endswith(f"  {note} calls {line['tool_calls']:.2f}")
        assert {"engine/decode_tokens_per_s", "engine/compilations"} <= set(line)


def test_a_tool_that_hangs_is_read_and_counted_and_the_stage_goes_on(pieces, tmp_path, monkeypatch):
    forever = threading.Event()
    hangs = dataclasses.replace(pieces.agent, transform=lambda *_: forever.wait())
    sizes = dataclasses.replace(pieces.engine.config, tool_timeout=0.1)
    monkeypatch.setattr(pieces.engine, "config", sizes)
    run = dataclasses.replace(pieces, agent=hangs).run(tmp_path, steps=1)
    forever.set()
    (line,), calls = run.lines, [call for t in run.trajectories for call in t.calls]
    assert line["calls/failed/timeout"] == line["tool_calls"] == len(calls) / 16 > 0
    assert {call.observation for call in calls} == {"error: the tool timed out"}
    assert "calls/refused" not in line and line["engine/tool_wait_s"] >= 0.1
    seconds = line["seconds/rollout"] + line["seconds/update"]
    assert line["time_share/tools"] * seconds == pytest.approx(line["engine/tool_wait_s"])


def test_observations_are_in_the_batch_and_not_judged(single):
    """The rollouts exercise the whole loop: some pause, are answered and go on."""
    kinds = [set(t.origin.tolist()) for t in single.trajectories]
    assert sum(kind == {SAMPLED, OBSERVATION} for kind in kinds) > 3
    assert len({tuple(t.ids.tolist()) for t in single.trajectories}) > 30


def test_the_engine_samples_from_the_updated_weights(single, pieces, tmp_path):
    """The learner's log-probs of the second step are the sampler's, unless that one is stale."""
    assert max(line["logprob_difference"] for line in single.lines) < 1e-4
    start = jax.tree.leaves(pieces.params())
    moved = [np.abs(a - b).max() for a, b in zip(single.params, start, strict=True)]
    assert min(moved) > 1e-4
    stale = dataclasses.replace(pieces, engine=Stale(pieces.engine))
    assert stale.run(tmp_path).lines[1]["logprob_difference"] > 1e-3


def test_what_a_narrow_cache_costs_is_logged(single, pieces, tmp_path):
    """The sampler reads rounded keys and values, the learner does not."""
    narrow = dataclasses.replace(pieces, engine=tiny_stage(cache_dtype="int8").engine)
    [line] = narrow.run(tmp_path, steps=1).lines
    cost = line["logprob_difference"]
    assert 10 * single.lines[0]["logprob_difference"] < cost < 0.05 and cost > 1e-5


def test_what_narrow_weights_cost_is_logged(single, pieces, tmp_path):
    """In both steps: the sampler's copy is that of the weights before each update."""
    narrow = dataclasses.replace(pieces, engine=tiny_stage(weight_dtype="int8").engine)
    run = narrow.run(tmp_path)
    for line in run.lines:
        assert 10 * single.lines[0]["logprob_difference"] < line["logprob_difference"] < 0.05
        assert 1e-5 < line["logprob_difference"] and line["ratio_spread"] > 1e-5
    assert all(leaf.dtype == np.float32 for leaf in run.params)
    stale = dataclasses.replace(narrow, engine=Stale(narrow.engine)).run(tmp_path / "stale")
    assert stale.lines[1]["logprob_difference"] > 1.5 * run.lines[1]["logprob_difference"]


class Stale:
    """An engine that never hears of new weights: the fault to be found."""

    constraint = None

    def __init__(self, engine):
        self._engine, self._params = engine, None

    def generate(self, params, *arguments, **options):
        self._params = self._params or jax.tree.map(jnp.copy, params)
        return self._engine.generate(self._params, *arguments, **options)

    @property
    def telemetry(self):
        return self._engine.telemetry


def test_an_engine_that_constrains_answers_is_refused(pieces, tmp_path):
    engine = copy.copy(pieces.engine)
    engine.constraint = ranking_constraint(tiny_world().tokenizer)
    sentence = refused(dataclasses.replace(pieces, engine=engine).run, tmp_path)
    assert_names(sentence, "stage tiny", "constraint")


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(single, pieces, tmp_path):
    with Checkpoints(tmp_path / "checkpoints", {}) as checkpoints:
        pieces.run(tmp_path, checkpoints, steps=1)
    with MetricsWriter(tmp_path) as writer:
        writer.write("tiny", 2, {"loss": 9.0})  # of a step that was never committed
    with Checkpoints(tmp_path / "checkpoints", {}) as checkpoints:
        resumed = pieces.run(tmp_path, checkpoints)
    assert len(resumed.trajectories) == PROMPTS * MEMBERS
    assert timeless(resumed.lines) == timeless(single.lines)
    for a, b in zip(resumed.params, single.params, strict=True):
        np.testing.assert_array_equal(a, b)


def test_on_a_mesh_the_stage_is_that_of_a_single_device(single, tmp_path):
    """Data 2 x fsdp 2 x tensor 2: the same ids; losses and weights to 1e-4."""
    pieces = tiny_stage(make_mesh(data=2, fsdp=2, tensor=2))
    sharded = pieces.run(tmp_path)
    assert pieces.engine.shards == 4 and pieces.stage.packing.group_multiple == 4
    for a, b in zip(sharded.trajectories, single.trajectories, strict=True):
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)
    for a, b in zip(sharded.lines, single.lines, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)
        assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], abs=1e-4)
    for a, b in zip(sharded.params, single.params, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_every_epoch_holds_each_example_once():
    examples = tiny_world().examples[:13]
    tasks_at = ranking_tasks(examples, 5, seed=3)
    order = [task.example.example_id for step in range(13) for task in tasks_at(step)]
    epochs = [order[i : i + 13] for i in range(0, 65, 13)]
    for epoch in epochs:
        assert Counter(epoch) == Counter(e.example_id for e in examples)
    assert len({tuple(epoch) for epoch in epochs}) == 5
    again = ranking_tasks(examples, 5, seed=3)
    assert again(7) == tasks_at(7) != ranking_tasks(examples, 5, seed=4)(7)


def test_refinement_mixes_a_share_of_rankings_in():
    examples = tiny_world().examples[:6]
    pairs = [HardPair(e.example_id, e.target, e.candidates[0]) for e in examples[:4]]
    tasks_at = refinement_tasks(pairs, examples, prompts=8, rank_share=0.25, seed=1)
    for step in range(3):
        kinds = Counter(task.kind for task in tasks_at(step))
        assert kinds["rank"] == 2 and kinds["more"] + kinds["less"] == 6
    whole = [t for step in range(4) for t in tasks_at(step) if t.kind != "rank"]
    counts = Counter((t.example.example_id, t.kind) for t in whole)
    assert len(counts) == 8 and set(counts.values()) == {3}


def test_the_reward_can_be_replaced_and_is_the_papers_by_default():
    fields = {f.name: f.default for f in dataclasses.fields(Agent)}
    assert fields["reward"].__name__ == "agenticrec_reward"
