"""Log-probs and gradients of groups are those of separate rows, and nothing is of [B, T, V]."""

import re
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.losses import for_batch, grpo_loss
from agenticrec_jax.parallel.mesh import RULES, make_mesh, shard_batch, shard_params, traced_on
from agenticrec_jax.testing.groups import (
    CONFIG,
    GROUPS,
    VOCAB,
    WHOLE,
    assert_trees_close,
    policy,
    random_groups,
    unrolled,
)
from agenticrec_jax.training.logprobs import make_scorer, policy_logprobs
from agenticrec_jax.training.packing import pack_groups
from agenticrec_jax.types import SAMPLED

TEMPERATURE = 0.7
TWO_LAYERS = replace(CONFIG, num_layers=2)
GRPO = for_batch(grpo_loss, normalizer=16.0, clip_low=0.2, clip_high=0.3)  # needs the values too


def separate_rows(model, groups):
    """Log-probs and entropies of sampled tokens from one full row per member: the oracle.

    Rows are filled up on the right, where a causal model's earlier logits cannot see.
    """
    rows = [(g.prompt, r) for g in groups for r in g.completions]
    longest = max(len(prompt) + len(rollout.ids) for prompt, rollout in rows)
    ids, actual = np.zeros((len(rows), longest), np.int32), []
    for row, (prompt, rollout) in zip(ids, rows, strict=True):
        row[: len(prompt) + len(rollout.ids)] = np.concatenate([prompt, rollout.ids])
    laws = jax.nn.log_softmax(model(jnp.asarray(ids)) / TEMPERATURE)
    for law, (prompt, rollout) in zip(laws, rows, strict=True):
        positions = len(prompt) - 1 + np.flatnonzero(rollout.origin == SAMPLED)
        targets = rollout.ids[rollout.origin == SAMPLED]
        actual.append(
            jnp.stack([law[positions, targets], -(jnp.exp(law) * law).sum(-1)[positions]])
        )
    return jnp.concatenate(actual, axis=1)


def in_order(batch, values):
    """values [..., P, G, T] at sampled tokens, in the order of GROUPS and their members."""
    order = sorted(GROUPS, key=lambda g: (g.longest, len(g.prompt)), reverse=True)
    row = {id(group): p for p, group in enumerate(order)}
    return np.concatenate(
        [
            np.asarray(values)[..., row[id(group)], g, :][..., batch.sampled[row[id(group)], g]]
            for group in GROUPS
            for g in range(len(group.completions))
        ],
        axis=-1,
    )


@partial(jax.jit, static_argnums=(0, 1))
def two_streams(config, chunk, params, batch, weights):
    """The learner's scores [2, P, G, T] and the gradient of their sum under weights."""

    def value(params):
        model = nnx.merge(policy(config)[0], params)
        scores = jnp.stack(policy_logprobs(model, batch, TEMPERATURE, chunk))
        return (scores * weights).sum(), scores

    gradient, scores = jax.grad(value, has_aux=True)(params)
    return scores, gradient


@cache
def oracle():
    """A batch, random weights of its scores, and the scores and gradient from separate rows."""
    (batch,) = pack_groups(GROUPS, WHOLE)
    graphdef, params = policy(TWO_LAYERS)
    weights = np.random.default_rng(5).normal(size=(2, *batch.sampled.shape)).astype(np.float32)
    flat = in_order(batch, weights)

    def value(params):
        scores = separate_rows(nnx.merge(graphdef, params), GROUPS)
        return (scores * flat).sum(), scores

    gradient, scores = jax.jit(jax.grad(value, has_aux=True))(params)
    return batch, weights, scores, gradient


@pytest.mark.parametrize(
    ("chunk", "changes"),
    [
        pytest.param(1024, {}, marks=pytest.mark.slow),
        pytest.param(9, {"remat": "full"}, marks=pytest.mark.slow),
        (40, {"scan_layers": True}),
    ],
)
def test_two_streams_equal_separate_rows(chunk, changes):
    """Log-probs, entropies and the gradient of a random functional of them, to 1e-5."""
    batch, weights, expected, gradient = oracle()
    config = replace(TWO_LAYERS, **changes)
    scores, actual = two_streams(config, chunk, policy(config)[1], batch, weights)
    np.testing.assert_allclose(in_order(batch, scores), expected, atol=2e-5)
    assert float(expected[0].std()) > 0.5  # the policy is far from uniform
    assert_trees_close(unrolled(actual), unrolled(gradient), 1e-5)
    assert (np.asarray(scores)[:, ~batch.sampled] == 0).all()


def test_sharded_gradients_equal_those_of_separate_rows():
    """Data 2 x fsdp 2 x tensor 2, with layers recomputed; to 1e-5 of each leaf's largest."""
    batch, weights, expected, gradient = oracle()
    config, mesh = replace(TWO_LAYERS, remat="full"), make_mesh(data=2, fsdp=2, tensor=2)
    params = shard_params(policy(config)[1], mesh)
    placed = shard_batch(batch, mesh)
    with traced_on(mesh, RULES):
        scores, actual = two_streams(config, 16, params, placed, weights)
    up = actual["layers"][0]["mlp"]["up"]["kernel"].get_value()
    assert up.addressable_shards[0].data.size < up.size
    np.testing.assert_allclose(in_order(batch, scores), expected, atol=2e-5)
    assert_trees_close(unrolled(jax.device_get(actual)), jax.device_get(unrolled(gradient)), 1e-5)


def test_observations_alone_give_no_gradient():
    batch, weights, _, _ = oracle()
    batch = replace(batch, sampled=np.zeros_like(batch.sampled))
    _, actual = two_streams(TWO_LAYERS, 1024, policy(TWO_LAYERS)[1], batch, weights)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(actual))


def test_a_sharded_scorer_gives_the_numbers_of_one_device():
    graphdef, params = policy()
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    (batch,) = pack_groups(GROUPS, replace(WHOLE, group_multiple=4))
    one = make_scorer(graphdef, temperature=TEMPERATURE)(params, batch)
    score = make_scorer(graphdef, temperature=TEMPERATURE, chunk=16, mesh=mesh)
    sharded = score(shard_params(params, mesh), shard_batch(batch, mesh))
    np.testing.assert_allclose(sharded, one, atol=2e-5)
    assert float(jnp.abs(one).max()) > 1


@cache
def gradient_program(chunk):
    graphdef, params = policy()
    (batch,) = pack_groups(random_groups([(9, (17, 30, 25))] * 4), WHOLE)

    def loss(params):
        return GRPO(policy_logprobs(nnx.merge(graphdef, params), batch, 1.0, chunk)[0], batch)[0]

    return jax.jit(jax.grad(loss)).lower(params)


@cache
def compiled_gradient(chunk):
    return gradient_program(chunk).compile().as_text()


def largest_over_vocabulary(text):
    """Most elements over the vocabulary of any array in a program, weights and chunks alike."""
    shapes = re.findall(r"tensor<((?:\d+x)+)f32>|f32\[([\d,]+)\]", text)
    sizes = [[int(n) for n in re.split("[x,]", a or b) if n] for a, b in shapes]
    return max(int(np.prod(size)) for size in sizes if VOCAB in size) // VOCAB


def test_no_array_of_all_tokens_by_vocabulary_exists():
    """4 x 3 x 32 = 384 tokens; neither traced nor compiled is there [384, V], only chunks."""
    for text in (gradient_program(40).as_text(), compiled_gradient(40)):
        assert largest_over_vocabulary(text) == 40
    assert largest_over_vocabulary(gradient_program(1024).as_text()) == 384


@pytest.mark.parametrize(("chunk", "tokens"), [(40, 40), (1024, 384)])
def test_logits_are_never_copied_the_other_way_round(chunk, tokens):
    """As XLA's CPU compiler did for the kernel's gradient where logits were [4, 10, V]."""
    text = compiled_gradient(chunk)
    assert f"f32[{tokens},{VOCAB}]" in text and f"f32[{VOCAB},{CONFIG.hidden_size}]" in text
    assert f"f32[{VOCAB},{tokens}]" not in text and f"f32[{VOCAB},4," not in text


def test_logits_of_a_single_chunk_are_not_computed_twice():
    product = rf"dot_general.*-> tensor<\d+x{VOCAB}xf32>"
    counts = [len(re.findall(product, gradient_program(chunk).as_text())) for chunk in (1024, 40)]
    assert counts == [1, 2]
