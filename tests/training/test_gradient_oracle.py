"""The gradient of the whole path (policy, log-probs, loss) against finite differences and torch."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors.numpy import load_file

from agenticrec_jax.losses import for_batch, grpo_loss
from agenticrec_jax.models import config
from agenticrec_jax.models.io.huggingface import save_policy
from agenticrec_jax.models.lora import split_learned
from agenticrec_jax.testing.groups import CONFIG, GROUPS, WHOLE, policy
from agenticrec_jax.training.learner import make_update
from agenticrec_jax.training.logprobs import make_scorer
from agenticrec_jax.training.packing import pack_groups

TEMPERATURE, LENGTH, LOW, HIGH, KL, ENTROPY = 0.7, 16.0, 0.2, 0.3, 0.1, 0.05
SHAPE = replace(CONFIG, num_layers=2)
GRPO = for_batch(grpo_loss, normalizer=LENGTH, clip_low=LOW, clip_high=HIGH, kl_coef=KL)


def loss_fn(logprobs, batch):
    """Every term there is: the clipped ratio, KL to a reference, and the entropies."""
    loss, metrics = GRPO(logprobs, batch)
    return loss - ENTROPY * (batch.weights * batch.entropy.sum(axis=-1)).sum(), metrics


@pytest.fixture(scope="module")
def batch():
    """Groups whose log-probs were sampled a little off the policy, so that some are clipped."""
    graphdef, params = policy(SHAPE)
    (batch,) = pack_groups(GROUPS, WHOLE)
    logprob = make_scorer(graphdef, temperature=TEMPERATURE)(params, batch)
    rng = np.random.default_rng(3)
    behavior, reference = (
        np.where(batch.sampled, logprob + rng.normal(scale=0.2, size=logprob.shape), 0).astype(
            np.float32
        )
        for _ in range(2)
    )
    return replace(batch, behavior_logprobs=behavior, reference_logprobs=reference)


@pytest.fixture
def in_float64(monkeypatch):
    """All that the package computes in float32 is float64."""
    monkeypatch.setattr(jnp, "float32", jnp.float64)
    monkeypatch.setattr(config, "DTYPES", ("float64",))
    with jax.enable_x64(True):
        yield


def learner_of(shape, params, batch, chunk):
    """``params -> (gradient, loss, metrics)`` of the learner, and the parameters it learns."""
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: nnx.merge(policy(shape)[0], params)))
    update = make_update(graphdef, loss_fn, optax.sgd(1.0), temperature=TEMPERATURE, chunk=chunk)
    learned, frozen = split_learned(params)
    return lambda params: update.accumulate(params, frozen, update.zeros(params), batch), learned


@pytest.mark.parametrize(
    ("chunk", "remat"), [pytest.param(1024, "none", marks=pytest.mark.slow), (9, "full")]
)
def test_gradients_are_finite_differences_in_float64(batch, in_float64, chunk, remat):
    """Along random directions in every leaf, to a millionth of the leaf's gradient."""
    shape = replace(SHAPE, dtype="float64", param_dtype="float64", remat=remat)
    params = jax.tree.map(lambda x: x.astype(jnp.float64), policy(SHAPE)[1])
    learner, params = learner_of(shape, params, batch, chunk)
    gradient, loss, metrics = learner(params)
    assert loss.dtype == jnp.float64 and abs(loss) > 0.01
    clipped, count = metrics["clip_fraction"]
    assert 0.05 < clipped / count < 0.6
    leaves, structure = jax.tree.flatten(params)
    rng, step = np.random.default_rng(0), 1e-6
    for i, slope in enumerate(jax.tree.leaves(gradient)):
        direction = rng.normal(size=slope.shape)
        direction /= np.linalg.norm(direction)
        ends = [
            learner(structure.unflatten([*leaves[:i], leaves[i] + h * direction, *leaves[i + 1 :]]))
            for h in (step, -step)
        ]
        difference = float(ends[0][1] - ends[1][1]) / (2 * step)
        worst = 1e-6 * float(jnp.linalg.norm(slope)) + 1e-9
        assert abs(difference - float((slope * direction).sum())) < worst, i
        assert float(jnp.abs(slope).max()) > 1e-5


@pytest.mark.peer
def test_gradients_are_those_of_torch(batch, tmp_path):
    """Of transformers on one full row for each member; to 1e-5 of each leaf's largest entry."""
    import torch
    from transformers import AutoModelForCausalLM

    graphdef, params = policy(SHAPE)
    learner, params = learner_of(SHAPE, params, batch, 9)
    gradient, actual, _ = learner(params)
    save_policy(nnx.merge(graphdef, params), tmp_path / "policy")
    save_policy(nnx.merge(graphdef, gradient), tmp_path / "gradient")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "policy", attn_implementation="eager")
    loss = torch.zeros(())
    for p, g in np.ndindex(batch.advantages.shape):
        prompt = batch.prompts[p][batch.prompt_valid[p]]
        completion = batch.completions[p, g][batch.valid[p, g]]
        positions = np.flatnonzero(batch.sampled[p, g])
        ids = torch.from_numpy(np.concatenate([prompt, completion]).astype(np.int64))
        law = (model(ids[None]).logits[0] / TEMPERATURE).log_softmax(-1)
        law = law[len(prompt) - 1 + positions]
        logprob = law.gather(1, torch.from_numpy(completion[positions].astype(np.int64))[:, None])[
            :, 0
        ]
        behavior, reference = (
            torch.from_numpy(np.asarray(x[p, g, positions]))
            for x in (batch.behavior_logprobs, batch.reference_logprobs)
        )
        advantage, ratio = float(batch.advantages[p, g]), (logprob - behavior).exp()
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - LOW, 1 + HIGH) * advantage)
        away = reference - logprob
        gain = gain - KL * (away.exp() - 1 - away)
        entropy = -(law.exp() * law).sum(-1)
        member = gain.sum() / LENGTH + ENTROPY * entropy.sum()
        loss = loss - float(batch.weights[p, g]) * member
    loss.backward()
    assert abs(loss.item() - float(actual)) < 1e-5
    ours = load_file(tmp_path / "gradient" / "model.safetensors")
    theirs = {name: x.grad.numpy() for name, x in model.named_parameters()}
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert np.abs(ours[name] - expected).max() < 1e-5 * np.abs(expected).max(), name
