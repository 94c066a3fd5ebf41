"""The learner: exact log-probs and gradients, whatever the packing, and nothing of [B, T, V]."""

import re
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from agenticrec_jax.losses import for_batch, grpo_loss, sft_loss
from agenticrec_jax.models.qwen3 import Qwen3, Qwen3Config
from agenticrec_jax.parallel.mesh import make_mesh
from agenticrec_jax.training.batches import (
    Demonstration,
    Group,
    Packing,
    demonstration_groups,
    pack_groups,
    rollout_groups,
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


@dataclass
class Rollout:
    ids: np.ndarray
    logprobs: np.ndarray
    origin: np.ndarray


def policy(seed=1, config=CONFIG):
    """A model with weights large enough for attention and probabilities to be far from uniform."""
    graphdef, params = nnx.split(Qwen3(config, rngs=nnx.Rngs(seed)))
    return graphdef, jax.tree.map(lambda x: x * 8 if x.ndim > 1 else x, params)


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


def two_streams(model, groups, chunk=1024):
    """The same numbers in the same order from the learner's own pass."""
    (batch,) = pack_groups(groups, WHOLE)
    scores = jnp.stack(policy_logprobs(model, batch, TEMPERATURE, chunk))
    real = np.flatnonzero(batch.weights.sum(axis=1))
    order = sorted(range(len(groups)), key=lambda i: (groups[i].longest, len(groups[i].prompt)))
    rows = dict(zip(order[::-1], real, strict=True))
    parts = [
        scores[:, rows[i], g][:, batch.sampled[rows[i], g]]
        for i, group in enumerate(groups)
        for g in range(len(group.completions))
    ]
    return jnp.concatenate(parts, axis=1)


@pytest.mark.parametrize(("chunk", "remat"), [(1024, False), (9, True)])
def test_two_streams_equal_separate_rows(chunk, remat):
    """Log-probs, entropies and the gradient of a random functional of them, to 1e-5."""
    graphdef, params = policy(config=replace(CONFIG, num_layers=2, remat=remat))
    tokens = sum((r.origin == SAMPLED).sum() for g in GROUPS for r in g.completions)
    weights = jax.random.normal(jax.random.key(5), (2, tokens))

    def value(score, params):
        scores = score(nnx.merge(graphdef, params), GROUPS)
        return (scores * weights).sum(), scores

    expected = jax.jit(jax.grad(lambda p: value(separate_rows, p), has_aux=True))(params)
    found = jax.jit(
        jax.grad(lambda p: value(lambda m, g: two_streams(m, g, chunk), p), has_aux=True)
    )(params)
    np.testing.assert_allclose(found[1], expected[1], atol=2e-5)
    assert float(expected[1][0].std()) > 0.5  # the policy is far from uniform
    assert_trees_close(found[0], expected[0], 1e-5)


def test_places_that_are_not_sampled_score_zero():
    graphdef, params = policy()
    (batch,) = pack_groups(GROUPS, WHOLE)
    for score in jax.jit(lambda p: policy_logprobs(nnx.merge(graphdef, p), batch))(params):
        assert (np.asarray(score)[~batch.sampled] == 0).all()
        assert (np.asarray(score)[batch.sampled] != 0).all()


def test_observations_alone_give_no_gradient():
    graphdef, params = policy()
    (batch,) = pack_groups(GROUPS, WHOLE)
    batch = replace(batch, sampled=np.zeros_like(batch.sampled))

    def loss(params):
        return GRPO(policy_logprobs(nnx.merge(graphdef, params), batch, TEMPERATURE)[0], batch)[0]

    assert all((leaf == 0).all() for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(params)))


def run_update(groups, packing, *, loss_fn=GRPO, mesh=None, chunk=1024, steps=2):
    """Steps of plain momentum: unlike Adam's they are not blown up where gradients vanish."""
    graphdef, params = policy()
    optimizer = optax.sgd(0.5, momentum=0.9)
    update = make_update(
        graphdef, loss_fn, optimizer, temperature=TEMPERATURE, chunk=chunk, mesh=mesh
    )
    state, reports = init_state(params, optimizer, mesh), []
    for _ in range(steps):
        state, metrics = update(state, pack_groups(groups, packing))
        reports.append(metrics)
    return state, reports


def test_results_do_not_depend_on_the_micro_batches():
    groups = groups_of([*LENGTHS, (6, (8, 8, 1)), (3, (4, 9, 9))])
    one, reports = run_update(groups, WHOLE)
    assert len(pack_groups(groups, WHOLE)) == 1
    tiny = Packing(1, prompt_buckets=16, completion_buckets=16)
    assert len(pack_groups(groups, tiny)) == 6
    many, others = run_update(groups, tiny, chunk=5)
    assert_trees_close(many.params, one.params, 1e-5)
    moved = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), one.params, policy()[1])
    assert min(map(float, jax.tree.leaves(moved))) > 1e-3
    assert int(many.step) == int(one.step) == 2
    for found, expected in zip(others, reports, strict=True):
        assert found.keys() == expected.keys()
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=2e-4, atol=1e-6)


def test_sharded_update_equals_a_single_device():
    """Data 2 x fsdp 2 x tensor 2: losses and parameters to 1e-4."""
    packing = replace(WHOLE, group_multiple=4)
    groups = groups_of(LENGTHS)
    single, expected = run_update(groups, packing)
    sharded, found = run_update(groups, packing, mesh=make_mesh(data=2, fsdp=2, tensor=2))
    up = sharded.params["layers"][0]["mlp"]["up"]["kernel"].get_value()
    assert up.addressable_shards[0].data.shape == (12, 20)
    moments = jax.tree.leaves(sharded.opt_state)
    assert any(m.ndim == 2 and m.addressable_shards[0].data.size < m.size for m in moments)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], atol=1e-4)
        np.testing.assert_allclose(a["gradient_norm"], b["gradient_norm"], rtol=1e-4)
    assert_trees_close(jax.device_get(sharded.params), jax.device_get(single.params), 1e-4)


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


def test_the_loss_is_traced_once_per_shape():
    traces = []

    def counted(logprobs, batch):
        traces.append(logprobs.shape)
        return GRPO(logprobs, batch)

    groups = groups_of([(9, (7, 1, 12)), (11, (13, 9, 10)), (10, (15, 2, 4)), (4, (3, 6, 2))])
    packing = Packing(70, prompt_buckets=16, completion_buckets=(8, 16))
    run_update(groups, packing, loss_fn=counted, steps=3)
    assert traces == [(1, 3, 16), (1, 3, 8)]


def test_no_groups_no_update():
    graphdef, params = policy()
    optimizer = make_optimizer(1e-3)
    state = init_state(params, optimizer)
    same, metrics = make_update(graphdef, GRPO, optimizer)(state, [])
    assert same is state and int(same.step) == 0
    assert metrics == {"updates_skipped": (1.0, 1.0)}


def test_own_log_probs_differ_by_nothing_from_the_learners():
    graphdef, params = policy()
    (batch,) = pack_groups(GROUPS, WHOLE)
    behaviour = make_scorer(graphdef, temperature=TEMPERATURE)(params, batch)
    batch = replace(batch, behaviour_logprobs=behaviour, reference_logprobs=behaviour)
    optimizer = make_optimizer(1e-3)
    update = make_update(graphdef, GRPO, optimizer, temperature=TEMPERATURE)
    _, metrics = update(init_state(params, optimizer), [batch])
    means = mean_metrics(metrics)
    assert means["logprob_difference"] < 1e-5
    assert abs(means["ratio"] - 1) < 1e-5 and means["clip_fraction"] == 0
    assert abs(means["kl"]) < 1e-9
    assert metrics["ratio"][1] == batch.sampled.sum()
    assert 0 < means["entropy"] < np.log(VOCAB)


def test_a_loss_may_use_the_entropy():
    """An entropy bonus alone makes the policy more uniform."""

    def bonus(logprobs, batch):
        return -(batch.weights * batch.entropy.sum(axis=-1)).sum(), {}

    _, reports = run_update(GROUPS, WHOLE, loss_fn=bonus, steps=4)
    entropies = [mean_metrics(report)["entropy"] for report in reports]
    assert entropies == sorted(entropies) and entropies[-1] > entropies[0] + 0.01


def test_weights_in_bfloat16_keep_their_type_and_float32_moments():
    config = replace(CONFIG, param_dtype="bfloat16", dtype="bfloat16")
    graphdef, params = policy(config=config)
    optimizer = make_optimizer(1e-2, weight_decay=0.1)
    state = init_state(params, optimizer)
    types = jax.tree.map(lambda x: x.dtype, state)
    before = jax.device_get(params)
    state, metrics = make_update(graphdef, GRPO, optimizer)(state, pack_groups(GROUPS, WHOLE))
    assert jax.tree.map(lambda x: x.dtype, state) == types
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("bfloat16")}
    floats = [x.dtype for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert set(floats) == {jnp.dtype("float32")}
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), before, jax.device_get(state.params))
    assert any(jax.tree.leaves(changed)) and np.isfinite(metrics["loss"][0])


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ValueError, match="temperature is 0"):
        make_update(policy()[0], GRPO, make_optimizer(1e-3), temperature=0)


def test_warm_up_and_clip_by_hand():
    """A gradient of norm 50 is clipped to 2; Adam's first steps are then the rate itself."""
    optimizer = make_optimizer(0.3, warmup_steps=3, clip_norm=2.0, weight_decay=0.1)
    params = {"w": jnp.array([4.0, -2.0])}
    opt_state = optimizer.init(params)
    rates = []
    for _ in range(4):
        updates, opt_state = optimizer.update({"w": jnp.array([30.0, -40.0])}, opt_state, params)
        rates.append(float(updates["w"][1] - updates["w"][0] * 0) / (1.0 + 0.1 * 2.0))
    np.testing.assert_allclose(rates, [0.1, 0.2, 0.3, 0.3], rtol=1e-4)
    mean = [s.mu for s in jax.tree.leaves(opt_state, is_leaf=is_adam) if is_adam(s)][0]
    np.testing.assert_allclose(mean["w"], np.array([1.2, -1.6]) * (1 - 0.9**4), rtol=1e-5)


def is_adam(node):
    return isinstance(node, optax.ScaleByAdamState)


def test_metrics_add_up():
    total = add_metrics([{"a": (1.0, 2.0), "b": (3, 0)}, {"a": (5.0, 4.0), "b": (1, 0)}])
    assert total == {"a": (6.0, 6.0), "b": (4.0, 0.0)}
    assert mean_metrics(total) == {"a": 1.0}


def test_supervised_learning_learns():
    """The same update with groups of one memorises three demonstrations, observations apart."""
    rng = np.random.default_rng(3)
    origin = np.array([SAMPLED] * 3 + [OBSERVATION] * 2 + [SAMPLED] * 2, np.uint8)
    demonstrations = [Demonstration(rng.integers(0, VOCAB, 7), origin) for _ in range(3)]
    groups = demonstration_groups([rng.integers(0, VOCAB, 4) for _ in range(3)], demonstrations)
    graphdef, params = nnx.split(Qwen3(CONFIG, rngs=nnx.Rngs(0)))
    optimizer = make_optimizer(0.02, warmup_steps=3)
    update = make_update(graphdef, for_batch(sft_loss), optimizer)
    state = init_state(params, optimizer)
    batches = pack_groups(groups, WHOLE)
    for _ in range(40):
        state, metrics = update(state, batches)
    assert mean_metrics(metrics)["nll"] < 0.05
    np.testing.assert_allclose(metrics["loss"][0], mean_metrics(metrics)["nll"], rtol=1e-5)


def test_reinforcement_learns():
    """Sampled single tokens, rewarded when they equal the prompt's last: chance 0.1 to over 0.8."""
    rng = np.random.default_rng(4)
    graphdef, params = nnx.split(
        Qwen3(replace(CONFIG, vocab_size=10, tie_word_embeddings=True), rngs=nnx.Rngs(0))
    )
    optimizer = make_optimizer(0.01)
    update = make_update(graphdef, for_batch(grpo_loss, normaliser=1.0), optimizer)
    state = init_state(params, optimizer)
    law = jax.jit(lambda p, ids: jax.nn.softmax(nnx.merge(graphdef, p)(ids)[:, -1]))
    prompts = np.stack([np.append(rng.integers(0, 10, 2), answer) for answer in range(10)])
    shares = []
    for _ in range(40):
        chances = np.asarray(law(state.params, prompts), np.float64)
        draws = [rng.choice(10, 8, p=chance / chance.sum()) for chance in chances]
        rollouts = [
            [
                Rollout(np.array([i]), np.log(chance[[i]]), np.array([SAMPLED], np.uint8))
                for i in drawn
            ]
            for drawn, chance in zip(draws, chances, strict=True)
        ]
        rewards = (np.stack(draws) == prompts[:, -1:]).astype(np.float32)
        groups, _ = rollout_groups(prompts, rollouts, rewards)
        state, metrics = update(state, pack_groups(groups, WHOLE))
        shares.append(rewards.mean())
        if "ratio" in metrics:
            assert mean_metrics(metrics)["logprob_difference"] < 1e-4
    assert shares[0] < 0.25 and np.mean(shares[-3:]) > 0.8
