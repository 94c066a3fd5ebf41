"""The learner's updates, whatever the packing, the placement and the form of the layers."""

import time
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from agenticrec_jax.losses import for_batch, grpo_loss
from agenticrec_jax.models.lora import LoraConfig, add_lora, join_learned, split_learned
from agenticrec_jax.parallel.mesh import make_mesh
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.groups import (
    CONFIG,
    GROUPS,
    VOCAB,
    WHOLE,
    assert_trees_close,
    policy,
    unrolled,
)
from agenticrec_jax.testing.metrics import means
from agenticrec_jax.training.groups import GroupWeighting, split_groups, weighted_groups
from agenticrec_jax.training.learner import (
    add_metrics,
    init_state,
    make_optimizer,
    make_update,
)
from agenticrec_jax.training.logprobs import make_scorer
from agenticrec_jax.training.packing import Packing, pack_groups

TEMPERATURE = 0.7
TWO_LAYERS = replace(CONFIG, num_layers=2)
MESHES = [  # slices, data, fsdp, tensor, and the shard of a kernel
    (1, 2, 2, 2, (12, 20)),
    (2, 1, 2, 2, (12, 20)),
    pytest.param(1, 1, 8, 1, (3, 40), marks=pytest.mark.slow),
    pytest.param(1, 1, 1, 8, (24, 5), marks=pytest.mark.slow),
]
GRPO = for_batch(grpo_loss, normalizer=16.0, clip_low=0.2, clip_high=0.3)


def with_entropy_bonus(logprobs, batch):
    """A loss of one's own: GRPO, a little less sure of itself."""
    loss, metrics = GRPO(logprobs, batch)
    return loss - 0.01 * (batch.weights * batch.entropy.sum(axis=-1)).sum(), metrics


def fresh_state(optimizer, config=CONFIG, mesh=None):
    """A state of its own that an update may take over."""
    return init_state(jax.tree.map(jnp.copy, policy(config)[1]), optimizer, mesh)


@cache
def updater(mesh=None, config=CONFIG):
    """Plain momentum: unlike Adam its steps are not blown up where gradients vanish."""
    optimizer = optax.sgd(0.5, momentum=0.9)
    return optimizer, make_update(
        policy(config)[0], with_entropy_bonus, optimizer, temperature=TEMPERATURE, mesh=mesh
    )


def two_updates(batches, optimizer, update, mesh=None, config=CONFIG):
    state = fresh_state(optimizer, config, mesh)
    state, first = update(state, batches)
    state, second = update(state, batches)
    assert int(state.step) == 2
    return state, [first, second]


@cache
def one_micro_batch(config=CONFIG):
    batches = pack_groups(GROUPS, WHOLE)
    assert len(batches) == 1
    return two_updates(batches, *updater(config=config), config=config)


@pytest.mark.parametrize("members", [pytest.param(3, marks=pytest.mark.slow), 1])
def test_results_do_not_depend_on_the_micro_batches(members):
    """Micro-batches of one group (or member) and an odd chunk; one trace serves all of a shape."""
    traces = []

    def counted(logprobs, batch):
        traces.append(logprobs.shape)
        return with_entropy_bonus(logprobs, batch)

    optimizer, _ = updater()
    update = make_update(policy()[0], counted, optimizer, temperature=TEMPERATURE, chunk=5)
    groups = split_groups(GROUPS, members)
    batches = pack_groups(groups, Packing(1, prompt_buckets=16, completion_buckets=16))
    assert len(batches) == len(groups) == 12 // members
    several, actual = two_updates(batches, optimizer, update)
    one, expected = one_micro_batch()
    assert traces == [(1, members, 16)]
    assert_trees_close(several.params, one.params, 1e-5)
    moved = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), one.params, policy()[1])
    assert min(map(float, jax.tree.leaves(moved))) > 1e-3
    for a, b in zip(actual, expected, strict=True):
        assert a.keys() == b.keys()
        for name in b:
            np.testing.assert_allclose(a[name], b[name], rtol=2e-4, atol=1e-6)


EVERYTHING = for_batch(
    grpo_loss,
    normalizer=1.0,
    ratio="sequence",
    clip_low=0.2,
    clip_high=0.3,
    dual_clip=1.5,
    kl_coef=0.1,
    entropy_coef=0.05,
)


@pytest.mark.parametrize(
    "aggregation", [pytest.param("token_mean", marks=pytest.mark.slow), "sequence_mean"]
)
def test_with_every_option_results_do_not_depend_on_the_micro_batches(aggregation):
    """Weights made once for all groups; whole groups in one micro-batch, or each member alone."""
    rollouts = [group.completions for group in GROUPS]
    rewards = np.random.default_rng(0).normal(size=(4, 3))
    weighting = GroupWeighting(aggregation=aggregation, drop_negative=False)
    groups, _ = weighted_groups([g.prompt for g in GROUPS], rollouts, rewards, weighting)
    graphdef, params = policy()
    score = make_scorer(graphdef, temperature=TEMPERATURE)
    optimizer, update = every_option_updater()
    results = []
    for members, packing in ((0, WHOLE), (1, Packing(1, 16, 16))):
        batches = pack_groups(split_groups(groups, members), packing)
        # Near the sampler, some ratios beyond the bounds; a reference that is another policy.
        near = [score(params, batch) for batch in batches]
        batches = [
            replace(b, behavior_logprobs=x + 0.3 * np.cos(b.completions), reference_logprobs=x - 1)
            for b, x in zip(batches, near, strict=True)
        ]
        results.append(update(fresh_state(optimizer), batches))
    (one, expected), (several, actual) = results
    assert_trees_close(several.params, one.params, 1e-5)
    assert 0 < expected["clip_fraction"][0] < expected["clip_fraction"][1]
    assert actual.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(actual[name], expected[name], rtol=2e-4, atol=1e-6)


@cache
def every_option_updater():
    optimizer = optax.sgd(0.5)
    return optimizer, make_update(policy()[0], EVERYTHING, optimizer, temperature=TEMPERATURE)


def test_the_entropy_of_the_batch_has_a_gradient():
    """With nothing to gain but entropy, an update raises it."""
    bonus = for_batch(grpo_loss, normalizer=1.0, entropy_coef=1.0)
    optimizer = optax.sgd(0.05)
    update = make_update(policy()[0], bonus, optimizer, temperature=TEMPERATURE)
    (batch,) = pack_groups(GROUPS, WHOLE)
    batch = replace(batch, advantages=np.zeros_like(batch.advantages))
    state, first = update(fresh_state(optimizer), [batch])
    _, second = update(state, [batch])
    before, after = (means(m)["entropy"] for m in (first, second))
    assert after > before + 1e-3
    np.testing.assert_allclose(-first["loss"][0], first["entropy"][0] / 12, rtol=1e-5)


@pytest.mark.parametrize("slices,data,fsdp,tensor,shard", MESHES)
def test_sharded_update_equals_a_single_device(slices, data, fsdp, tensor, shard, capfd):
    """Losses and parameters to 1e-5 of each one's largest entry; no activation is replicated."""
    single, expected = one_micro_batch()
    mesh = make_mesh(slices=slices, data=data, fsdp=fsdp, tensor=tensor)
    batches = pack_groups(GROUPS, replace(WHOLE, group_multiple=4))
    sharded, actual = two_updates(batches, *updater(mesh), mesh)
    assert "full rematerialization" not in capfd.readouterr().err
    up = sharded.params["layers"][0]["mlp"]["up"]["kernel"].get_value()
    assert up.addressable_shards[0].data.shape == shard
    moments = [m for m in jax.tree.leaves(sharded.opt_state) if m.ndim == 2]
    assert any(m.addressable_shards[0].data.size < m.size for m in moments)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], atol=1e-5)
        np.testing.assert_allclose(a["gradient_norm"], b["gradient_norm"], rtol=1e-5)
    assert_trees_close(jax.device_get(sharded.params), jax.device_get(single.params), 1e-5)


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.slow), 8])
def test_updates_of_scanned_layers_are_those_of_unrolled_ones(devices):
    single, expected = one_micro_batch(TWO_LAYERS)
    config = replace(TWO_LAYERS, scan_layers=True, remat="full")
    mesh = make_mesh(data=2, fsdp=2, tensor=2) if devices > 1 else None
    batches = pack_groups(GROUPS, replace(WHOLE, group_multiple=4))
    scanned, actual = two_updates(batches, *updater(mesh, config), mesh, config)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], atol=1e-4)
        np.testing.assert_allclose(a["gradient_norm"], b["gradient_norm"], rtol=1e-4)
    actual, expected = unrolled(jax.device_get(scanned.params)), unrolled(single.params)
    assert_trees_close(actual, jax.device_get(expected), 1e-5)


@pytest.mark.slow
def test_an_update_of_36_scanned_layers_compiles_within_a_minute():
    """Seconds of the processor, over all threads."""
    config = replace(CONFIG, num_layers=36, scan_layers=True, remat="full")
    optimizer, update = updater(config=config)
    state, batches = fresh_state(optimizer, config), pack_groups(GROUPS, WHOLE)
    start = time.process_time()
    jax.block_until_ready(update(state, batches)[0])
    seconds = time.process_time() - start
    print(f"36 layers: {seconds:.1f} s")
    assert seconds < 60


@cache
def adapted_policy():
    """The policy with adapters that have left zero."""
    model = add_lora(nnx.merge(*policy()), LoraConfig(3, 6.0), rngs=nnx.Rngs(2))
    graphdef, params = nnx.split(model)
    adapters, base = split_learned(params)
    return graphdef, join_learned(jax.tree.map(lambda x: x + 0.05, adapters), base)


def adapter_updates(mesh=None):
    """The state after two updates, the shapes of the moments, the metrics of the second."""
    graphdef, params = adapted_policy()
    optimizer = optax.sgd(0.5, momentum=0.9)
    update = make_update(
        graphdef, with_entropy_bonus, optimizer, temperature=TEMPERATURE, mesh=mesh
    )
    state = init_state(jax.tree.map(jnp.copy, params), optimizer, mesh)
    moments = [m.shape for m in jax.tree.leaves(state.opt_state) if m.ndim]
    batches = pack_groups(GROUPS, replace(WHOLE, group_multiple=4))
    for _ in range(2):
        state, metrics = update(state, batches)
    return state, moments, metrics


def test_only_adapters_are_updated_and_have_moments():
    state, moments, metrics = adapter_updates()
    _, params = adapted_policy()
    (before, base), (after, frozen) = split_learned(params), split_learned(state.params)
    assert moments == [x.shape for x in jax.tree.leaves(before)] and len(moments) == 7 * 2
    assert jax.tree.structure(state.params) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(frozen), jax.tree.leaves(base), strict=True):
        np.testing.assert_array_equal(a, b)
    moved = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), after, before)
    assert min(map(float, jax.tree.leaves(moved))) > 1e-4
    assert metrics["gradient_norm"][0] > 0


def test_sharded_update_of_adapters_equals_a_single_devices():
    """Data 2 x fsdp 2 x tensor 2: adapters to 1e-5 of each one's largest entry."""
    single, _, expected = adapter_updates()
    sharded, _, actual = adapter_updates(make_mesh(data=2, fsdp=2, tensor=2))
    a = sharded.params["layers"][0]["mlp"]["down"]["lora"]["a"].get_value()
    assert a.addressable_shards[0].data.shape == (20, 3)
    np.testing.assert_allclose(actual["loss"], expected["loss"], atol=1e-5)
    pair = (split_learned(jax.device_get(s.params))[0] for s in (sharded, single))
    assert_trees_close(*pair, 1e-5)


def test_no_groups_no_update():
    optimizer, update = updater()
    state = fresh_state(optimizer)
    same, metrics = update(state, [])
    assert same is state and int(same.step) == 0
    assert metrics == {"updates_skipped": (1.0, 1.0)}


def test_own_log_probs_differ_by_nothing_from_the_learners():
    graphdef, params = policy()
    (batch,) = pack_groups(GROUPS, WHOLE)
    behavior = make_scorer(graphdef, temperature=TEMPERATURE)(params, batch)
    optimizer, update = updater()
    batch = replace(batch, behavior_logprobs=behavior)
    _, metrics = update(fresh_state(optimizer), [batch])
    actual = means(metrics)
    assert actual["logprob_difference"] < 1e-5
    assert abs(actual["ratio"] - 1) < 1e-5 and actual["clip_fraction"] == 0
    assert metrics["ratio"][1] == batch.sampled.sum()
    assert 0 < actual["entropy"] < np.log(VOCAB)


def test_weights_in_bfloat16_keep_their_type_and_float32_moments():
    config = replace(CONFIG, param_dtype="bfloat16", dtype="bfloat16")
    optimizer = make_optimizer(1e-2, weight_decay=0.1)
    state = fresh_state(optimizer, config)
    types = jax.tree.map(lambda x: x.dtype, state)
    update = make_update(policy(config)[0], GRPO, optimizer)
    state, metrics = update(state, pack_groups(GROUPS, WHOLE))
    assert jax.tree.map(lambda x: x.dtype, state) == types
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("bfloat16")}
    floats = [x.dtype for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert set(floats) == {jnp.dtype("float32")}
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), policy(config)[1], state.params)
    assert any(jax.tree.leaves(changed)) and np.isfinite(metrics["loss"][0])


def test_a_temperature_of_zero_is_refused():
    sentence = refused(make_update, policy()[0], GRPO, make_optimizer(1e-3), temperature=0)
    assert_names(sentence, "temperature: found 0")


def test_metrics_add_up():
    total = add_metrics([{"a": (1.0, 2.0), "b": (3, 0)}, {"a": (5.0, 4.0), "b": (1, 0)}])
    assert total == {"a": (6.0, 6.0), "b": (4.0, 0.0)}
    assert means(total) == {"a": 1.0}
