"""The reference policy: the stage's first weights, whatever the updates do to the others."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.losses import for_batch, grpo_loss
from agenticrec_jax.models.lora import LoraConfig, add_lora, split_learned
from agenticrec_jax.parallel.mesh import make_mesh
from agenticrec_jax.runtime.checkpoints import Checkpoints
from agenticrec_jax.testing.groups import GROUPS, WHOLE, policy
from agenticrec_jax.testing.stages import tiny_stage
from agenticrec_jax.training.logprobs import make_scorer
from agenticrec_jax.training.packing import pack_groups
from agenticrec_jax.training.references import ReferencePolicy

PENALIZED = for_batch(grpo_loss, normalizer=16.0, kl_coef=2.0, kl_estimator="k2")
MILD = for_batch(grpo_loss, normalizer=16.0, kl_coef=0.2, kl_estimator="k2")


def scored(mesh=None, loss_fn=PENALIZED):
    pieces = tiny_stage(mesh, loss_fn)
    score = make_scorer(pieces.graphdef, temperature=pieces.stage.temperature, mesh=mesh)
    return dataclasses.replace(pieces, score=score)


@pytest.fixture(scope="module")
def pieces_with_kl():
    return scored()


@pytest.fixture(scope="module")
def penalized(pieces_with_kl, tmp_path_factory):
    return pieces_with_kl.run(tmp_path_factory.mktemp("penalized"))


def distance(run, start):
    """From the first weights."""
    pairs = zip(run.params, jax.tree.leaves(start), strict=True)
    return sum(float(((a - np.asarray(b)) ** 2).sum()) for a, b in pairs) ** 0.5


def test_the_policy_leaves_its_reference_and_is_penalized(penalized, single):
    """Nothing to penalize in the first step, and another second update than without."""
    first, second = penalized.lines
    assert abs(first["kl"]) < 1e-8 < 1e-5 < second["kl"]
    assert first["loss"] == pytest.approx(single.lines[0]["loss"], abs=1e-6)
    assert first["gradient_norm"] == pytest.approx(single.lines[0]["gradient_norm"], rel=1e-4)
    assert second["reward"] == pytest.approx(single.lines[1]["reward"], abs=1e-6)
    assert abs(second["gradient_norm"] / single.lines[1]["gradient_norm"] - 1) > 1e-3


@pytest.mark.slow
def test_a_mild_penalty_draws_the_policy_back(single, tmp_path):
    """Less distance from the first weights than without it (the strong one overshoots)."""
    pieces = scored(loss_fn=MILD)
    start = pieces.params()
    assert 0 < distance(pieces.run(tmp_path), start) < 0.999 * distance(single, start)


def test_a_resumed_run_has_the_same_reference(pieces_with_kl, penalized, tmp_path):
    with Checkpoints(tmp_path / "checkpoints", {}) as checkpoints:
        pieces_with_kl.run(tmp_path, checkpoints, steps=1)
    with Checkpoints(tmp_path / "checkpoints", {}) as checkpoints:
        resumed = pieces_with_kl.run(tmp_path, checkpoints)
    assert resumed.lines[1]["kl"] == penalized.lines[1]["kl"]
    for a, b in zip(resumed.params, penalized.params, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_on_a_mesh_the_penalty_is_that_of_a_single_device(penalized, tmp_path):
    sharded = scored(make_mesh(data=2, fsdp=2, tensor=2)).run(tmp_path)
    for a, b in zip(sharded.lines, penalized.lines, strict=True):
        assert a["kl"] == pytest.approx(b["kl"], abs=1e-4)
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)


def test_of_a_policy_with_adapters_the_base_is_shared_and_the_adapters_are_kept():
    graphdef, params = nnx.split(
        add_lora(nnx.merge(*policy()), LoraConfig(3, 6.0), rngs=nnx.Rngs(2))
    )
    score, (batch,) = make_scorer(graphdef), pack_groups(GROUPS, WHOLE)
    reference = ReferencePolicy(score, params, None)
    expected = score(params, batch)
    learned, base = split_learned(params)
    copied = split_learned(reference._params)
    for leaf in jax.tree.leaves(learned):
        leaf.delete()  # as an update does that takes them over
    np.testing.assert_array_equal(reference(batch).reference_logprobs, expected)
    assert float(jnp.abs(expected).max()) > 1
    shared = zip(jax.tree.leaves(copied[1]), jax.tree.leaves(base), strict=True)
    assert all(a is b for a, b in shared)
