"""The learner: exact log-probs and gradients, whatever the packing, and nothing of [B, T, V]."""

import re
import time
from dataclasses import dataclass, replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from agenticrec_jax.losses import for_batch, grpo_loss
from agenticrec_jax.models.lora import LoraConfig, add_lora, join_learned, split_learned
from agenticrec_jax.models.qwen3 import Qwen3, Qwen3Config, by_layer
from agenticrec_jax.parallel.mesh import make_mesh
from agenticrec_jax.training.batches import (
    Group,
    Packing,
    cut_groups,
    pack_groups,
)
from agenticrec_jax.training.learner import (
    add_metrics,
    init_state,
    make_optimizer,
    make_scorer,
    make_update,
    mean_metrics,
    policy_logprobs,
)
from agenticrec_jax.types import OBSERVATION, SAMPLED

VOCAB = 101  # a prime that no other dimension has, to find it in compiled programs
TEMPERATURE = 0.7
CONFIG = Qwen3Config(
    vocab_size=VOCAB,
    hidden_size=24,
    intermediate_size=40,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=10,
    rope_theta=5e4,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
    max_position_embeddings=128,
)
GRPO = for_batch(grpo_loss, normaliser=16.0, clip_low=0.2, clip_high=0.3)


def with_entropy_bonus(logprobs, batch):
    """A loss of one's own: GRPO, a little less sure of itself."""
    loss, metrics = GRPO(logprobs, batch)
    return loss - 0.01 * (batch.weights * batch.entropy.sum(axis=-1)).sum(), metrics


@dataclass
class Rollout:
    ids: np.ndarray
    logprobs: np.ndarray
    origin: np.ndarray


@cache
def policy(config=CONFIG):
    """A model with weights large enough for attention and probabilities to be far from uniform."""
    graphdef, params = nnx.split(Qwen3(config, rngs=nnx.Rngs(1)))
    flat = [
        (path, v if path[-1] == "scale" else v.replace(8 * v.get_value()))
        for path, v in nnx.to_flat_state(params)
    ]
    return graphdef, nnx.from_flat_state(flat)


def fresh_state(optimizer, config=CONFIG, mesh=None):
    """A state of its own that an update may take over."""
    return init_state(jax.tree.map(jnp.copy, policy(config)[1]), optimizer, mesh)


def groups_of(lengths, seed=0):
    """Groups of random prompts and completions whose middle third is an observation."""
    rng = np.random.default_rng(seed)
    groups = []
    for prompt, completions in lengths:
        rollouts = []
        for length in completions:
            origin = np.full(length, SAMPLED, np.uint8)
            origin[length // 3 : 2 * length // 3] = OBSERVATION
            logprobs = -4 - rng.random(length).astype(np.float32)
            rollouts.append(Rollout(rng.integers(0, VOCAB, length), logprobs, origin))
        members = len(completions)
        weights = np.full(members, 1 / (members * len(lengths)), np.float32)
        advantages = rng.normal(size=members).astype(np.float32)
        groups.append(Group(rng.integers(0, VOCAB, prompt), rollouts, advantages, weights))
    return groups


LENGTHS = [(9, (7, 1, 12)), (4, (3, 6, 2)), (13, (5, 11, 9)), (1, (2, 2, 2))]
GROUPS = groups_of(LENGTHS)
WHOLE = Packing(10_000, prompt_buckets=8, completion_buckets=8)


def assert_trees_close(found, expected, tolerance):
    """Every leaf within tolerance of the expected leaf's largest entry."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True)
    for (path, a), b in pairs:
        worst = float(jnp.abs(a - b).max())
        limit = tolerance * max(float(jnp.abs(b).max()), 1e-6)
        assert worst <= limit, f"{jax.tree_util.keystr(path)}: {worst} > {limit}"


def separate_rows(model, groups):
    """Log-probs and entropies of sampled tokens from one full row per member: the oracle.

    Rows are filled up on the right, where a causal model's earlier logits cannot see.
    """
    rows = [(g.prompt, r) for g in groups for r in g.completions]
    longest = max(len(prompt) + len(rollout.ids) for prompt, rollout in rows)
    ids, found = np.zeros((len(rows), longest), np.int32), []
    for row, (prompt, rollout) in zip(ids, rows, strict=True):
        row[: len(prompt) + len(rollout.ids)] = np.concatenate([prompt, rollout.ids])
    laws = jax.nn.log_softmax(model(jnp.asarray(ids)) / TEMPERATURE)
    for law, (prompt, rollout) in zip(laws, rows, strict=True):
        places = len(prompt) - 1 + np.flatnonzero(rollout.origin == SAMPLED)
        targets = rollout.ids[rollout.origin == SAMPLED]
        found.append(jnp.stack([law[places, targets], -(jnp.exp(law) * law).sum(-1)[places]]))
    return jnp.concatenate(found, axis=1)


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


TWO_LAYERS = replace(CONFIG, num_layers=2)


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
    ("chunk", "changes"), [(1024, {}), (9, {"remat": "full"}), (40, {"scan_layers": True})]
)
def test_two_streams_equal_separate_rows(chunk, changes):
    """Log-probs, entropies and the gradient of a random functional of them, to 1e-5."""
    batch, weights, expected, gradient = oracle()
    config = replace(TWO_LAYERS, **changes)
    scores, found = two_streams(config, chunk, policy(config)[1], batch, weights)
    np.testing.assert_allclose(in_order(batch, scores), expected, atol=2e-5)
    assert float(expected[0].std()) > 0.5  # the policy is far from uniform
    assert_trees_close(unrolled(found), unrolled(gradient), 1e-5)
    assert (np.asarray(scores)[:, ~batch.sampled] == 0).all()


def test_observations_alone_give_no_gradient():
    batch, weights, _, _ = oracle()
    batch = replace(batch, sampled=np.zeros_like(batch.sampled))
    _, found = two_streams(TWO_LAYERS, 1024, policy(TWO_LAYERS)[1], batch, weights)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(found))


def unrolled(params):
    """Parameters or gradients as those of unrolled layers."""
    return {path: variable.get_value() for path, variable in by_layer(params)}


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


@pytest.mark.parametrize("members", [3, 1])
def test_results_do_not_depend_on_the_micro_batches(members):
    """Micro-batches of one group (or member) and an odd chunk; one trace serves all of a shape."""
    traces = []

    def counted(logprobs, batch):
        traces.append(logprobs.shape)
        return with_entropy_bonus(logprobs, batch)

    optimizer, _ = updater()
    update = make_update(policy()[0], counted, optimizer, temperature=TEMPERATURE, chunk=5)
    groups = cut_groups(GROUPS, members)
    batches = pack_groups(groups, Packing(1, prompt_buckets=16, completion_buckets=16))
    assert len(batches) == len(groups) == 12 // members
    many, found = two_updates(batches, optimizer, update)
    one, expected = one_micro_batch()
    assert traces == [(1, members, 16)]
    assert_trees_close(many.params, one.params, 1e-5)
    moved = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), one.params, policy()[1])
    assert min(map(float, jax.tree.leaves(moved))) > 1e-3
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
        for name in b:
            np.testing.assert_allclose(a[name], b[name], rtol=2e-4, atol=1e-6)


def test_sharded_update_equals_a_single_device(capfd):
    """Data 2 x fsdp 2 x tensor 2: losses and parameters to 1e-4; no activation is replicated."""
    single, expected = one_micro_batch()
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    batches = pack_groups(GROUPS, replace(WHOLE, group_multiple=4))
    sharded, found = two_updates(batches, *updater(mesh), mesh)
    assert "full rematerialization" not in capfd.readouterr().err
    up = sharded.params["layers"][0]["mlp"]["up"]["kernel"].get_value()
    assert up.addressable_shards[0].data.shape == (12, 20)
    moments = [m for m in jax.tree.leaves(sharded.opt_state) if m.ndim == 2]
    assert any(m.addressable_shards[0].data.size < m.size for m in moments)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], atol=1e-4)
        np.testing.assert_allclose(a["gradient_norm"], b["gradient_norm"], rtol=1e-4)
    assert_trees_close(jax.device_get(sharded.params), jax.device_get(single.params), 1e-4)


@pytest.mark.parametrize("devices", [1, 8])
def test_updates_of_scanned_layers_are_those_of_unrolled_ones(devices):
    single, expected = one_micro_batch(TWO_LAYERS)
    config = replace(TWO_LAYERS, scan_layers=True, remat="full")
    mesh = make_mesh(data=2, fsdp=2, tensor=2) if devices > 1 else None
    batches = pack_groups(GROUPS, replace(WHOLE, group_multiple=4))
    scanned, found = two_updates(batches, *updater(mesh, config), mesh, config)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], atol=1e-4)
        np.testing.assert_allclose(a["gradient_norm"], b["gradient_norm"], rtol=1e-4)
    found, expected = unrolled(jax.device_get(scanned.params)), unrolled(single.params)
    assert_trees_close(found, jax.device_get(expected), 1e-5 if devices == 1 else 1e-4)


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
    sharded, _, found = adapter_updates(make_mesh(data=2, fsdp=2, tensor=2))
    a = sharded.params["layers"][0]["mlp"]["down"]["lora"]["a"].get_value()
    assert a.addressable_shards[0].data.shape == (20, 3)
    np.testing.assert_allclose(found["loss"], expected["loss"], atol=1e-5)
    pair = (split_learned(jax.device_get(s.params))[0] for s in (sharded, single))
    assert_trees_close(*pair, 1e-5)


def gradient_program(chunk):
    graphdef, params = policy()
    (batch,) = pack_groups(groups_of([(9, (17, 30, 25))] * 4), WHOLE)

    def loss(params):
        return GRPO(policy_logprobs(nnx.merge(graphdef, params), batch, 1.0, chunk)[0], batch)[0]

    return jax.jit(jax.grad(loss)).lower(params)


def largest_over_vocabulary(text):
    """Most elements over the vocabulary of any array in a program, weights and chunks alike."""
    shapes = re.findall(r"tensor<((?:\d+x)+)f32>|f32\[([\d,]+)\]", text)
    sizes = [[int(n) for n in re.split("[x,]", a or b) if n] for a, b in shapes]
    return max(int(np.prod(size)) for size in sizes if VOCAB in size) // VOCAB


def test_no_array_of_all_tokens_by_vocabulary_exists():
    """4 x 3 x 32 = 384 tokens; neither traced nor compiled is there [384, V], only chunks."""
    program = gradient_program(chunk=40)
    for text in (program.as_text(), program.compile().as_text()):
        assert largest_over_vocabulary(text) == 40
    assert largest_over_vocabulary(gradient_program(chunk=1024).as_text()) == 384


def test_logits_of_a_single_chunk_are_not_computed_twice():
    product = rf"dot_general.*-> tensor<\d+x\d+x{VOCAB}xf32>"
    counts = [len(re.findall(product, gradient_program(chunk).as_text())) for chunk in (1024, 40)]
    assert counts == [1, 2]


def test_no_groups_no_update():
    optimizer, update = updater()
    state = fresh_state(optimizer)
    same, metrics = update(state, [])
    assert same is state and int(same.step) == 0
    assert metrics == {"updates_skipped": (1.0, 1.0)}


def test_own_log_probs_differ_by_nothing_from_the_learners():
    graphdef, params = policy()
    (batch,) = pack_groups(GROUPS, WHOLE)
    behaviour = make_scorer(graphdef, temperature=TEMPERATURE)(params, batch)
    optimizer, update = updater()
    batch = replace(batch, behaviour_logprobs=behaviour)
    _, metrics = update(fresh_state(optimizer), [batch])
    means = mean_metrics(metrics)
    assert means["logprob_difference"] < 1e-5
    assert abs(means["ratio"] - 1) < 1e-5 and means["clip_fraction"] == 0
    assert metrics["ratio"][1] == batch.sampled.sum()
    assert 0 < means["entropy"] < np.log(VOCAB)


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
    with pytest.raises(ValueError, match="temperature is 0"):
        make_update(policy()[0], GRPO, make_optimizer(1e-3), temperature=0)


def test_metrics_add_up():
    total = add_metrics([{"a": (1.0, 2.0), "b": (3, 0)}, {"a": (5.0, 4.0), "b": (1, 0)}])
    assert total == {"a": (6.0, 6.0), "b": (4.0, 0.0)}
    assert mean_metrics(total) == {"a": 1.0}
