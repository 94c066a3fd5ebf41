"""Pretraining resumes exactly, learns what it is taught, and moves matrices by Muon."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.agent.episodes import Agent
from agenticrec_jax.agent.prompts import CompactPrompts
from agenticrec_jax.runs.policy import Policy
from agenticrec_jax.runs.pretraining import make_muon, pretrain
from agenticrec_jax.runs.pretraining_config import PretrainingConfig
from agenticrec_jax.runs.tiny_policy import random_policy
from agenticrec_jax.runtime.metric_logging import read_metrics
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.training.judge import fit_judge
from agenticrec_jax.training.skill_sources import Episodes, Fusing, Reading

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 4,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 16,
}


@pytest.fixture(scope="module")
def sources():
    world = tiny_world()
    prompts = CompactPrompts(world.tokenizer, world.log.items, 3)
    agent = Agent(world.log, world.toolbox, world.artifacts, prompts)

    def words(item):
        return tuple(prompts.title_ids(item))

    judge = fit_judge(world.log, world.examples, world.artifacts.fit_range, words)
    return {
        "fusing": Fusing(prompts),
        "reading": Reading(agent, judge, world.examples),
        "episodes": Episodes(agent, judge, world.examples),
    }


def fresh_policy(settings):
    tokenizer = tiny_world().tokenizer
    graphdef, params = nnx.split(random_policy(settings, tokenizer.vocab_size))
    return Policy(graphdef, params, tokenizer, weights_hash="")


def small(lessons, review=(), **changes):
    counts = {name: (2, 2) for name in ("fusing", "reading", "episodes")}
    return PretrainingConfig(lessons=lessons, review=review, **SIZES, **{**counts, **changes})


def test_a_run_that_is_stopped_goes_on_to_the_same_weights(sources, tmp_path, monkeypatch):
    lessons = ((("fusing", "reading"), 3),)
    settings = small(lessons, review=((("episodes",), 2),), save_every=2)
    whole = pretrain(fresh_policy(settings), sources, settings, tmp_path / "whole", seed=3)

    class Stopped(Exception):
        pass

    def stop(*_):
        raise Stopped

    with monkeypatch.context() as patch:
        # Step 3, counted from 0, is the first of the review.
        patch.setattr(Episodes, "group", stop)
        with pytest.raises(Stopped):
            pretrain(fresh_policy(settings), sources, settings, tmp_path / "parts", seed=3)
    lines = [line["step"] for line in read_metrics(tmp_path / "parts" / "metrics.jsonl")]
    assert lines == [1, 2, 3]
    parts = pretrain(fresh_policy(settings), sources, settings, tmp_path / "parts", seed=3)
    jax.tree.map(np.testing.assert_array_equal, parts.params, whole.params)
    lines = read_metrics(tmp_path / "parts" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert "fusing/first" in lines[0] and "reading/candidate_score" in lines[1]
    assert "episodes/nll" in lines[4] and "fusing/first" not in lines[4]


def test_a_matrix_moves_in_all_directions_alike_and_an_embedding_does_not():
    settings = small(((("fusing",), 10),), warmup_steps=1, decay=0.0)
    _, params = nnx.split(random_policy(settings, 50))
    params = {"policy": params, "readouts": {"place": {"kernel": jnp.zeros((32, 10))}}}
    optimizer = make_muon(settings)
    rng = np.random.default_rng(0)
    # Gradients near rank one: their smallest singular value is a hundredth of the largest or less.
    gradients = jax.tree.map(
        lambda x: jnp.asarray(
            np.multiply.outer(rng.normal(size=x.shape[0]), rng.normal(size=x.shape[1:]))
            + 0.2 * rng.normal(size=x.shape)
        ),
        params,
    )
    moves, _ = optimizer.update(gradients, optimizer.init(params), params)
    flat = dict(nnx.to_flat_state(moves["policy"]))
    for name in ("q", "o"):
        move = np.asarray(flat["layers", 0, "attention", name, "kernel"][...])
        shape = (-1, 32) if name == "o" else (32, -1)
        values = np.linalg.svd(move.reshape(shape), compute_uv=False)
        assert values[15] > 0.3 * values[0], name
    # Adam's first step has one size, whatever the gradient's.
    for move in (flat["embedding",][...], moves["readouts"]["place"]["kernel"]):
        sizes = np.abs(np.asarray(move))
        assert sizes.min() > settings.embedding_rate / 2
        np.testing.assert_allclose(sizes, sizes.mean(), rtol=1e-2)


def test_the_rates_rise_and_fall_over_all_lessons_and_again_in_the_review():
    """Steps 4 and 2, a rise of 2, a fall over the last half: factors 1/2, 1, 1, 1, 2/3, 1/3.

    A review of 4 steps at half of that: factors 1/4, 1/2, 1/2, 1/4.
    """
    lessons = ((("fusing",), 4), (("reading",), 2))
    review = {"review": ((("fusing",), 4),), "review_rate": 0.5}
    settings = small(lessons, warmup_steps=2, decay=0.5, **review)
    optimizer = make_muon(settings)
    params = {"readouts": jnp.zeros(1)}  # Adam moves it by the rate while the gradient is constant
    state = optimizer.init(params)
    moves = []
    for _ in range(10):
        move, state = optimizer.update({"readouts": jnp.full(1, 1e-3)}, state, params)
        moves.append(abs(float(move["readouts"][0])))
    ratio = np.array(moves) / moves[1]
    # Nesterov's momentum settles over the steps, so the sizes are near the factors.
    factors = [1, 1, 2 / 3, 1 / 3, 1 / 4, 1 / 2, 1 / 2, 1 / 4]
    np.testing.assert_allclose(ratio[2:], factors, atol=0.15)


@pytest.mark.slow
def test_orders_are_followed_and_weighed_after_some_hundred_steps(sources, tmp_path):
    """About 8 minutes on 2 cores. A guess has .05 of first numbers."""
    settings = dataclasses.replace(
        PretrainingConfig(),
        lessons=((("fusing",), 240),),
        review=(),
        fusing=(32, 4),
    )
    pretrain(fresh_policy(settings), sources, settings, tmp_path)
    lines = read_metrics(tmp_path / "metrics.jsonl")[-20:]
    assert np.mean([line["fusing/first"] for line in lines]) > 0.85
    assert np.mean([line["fusing/places"] for line in lines]) > 0.6
