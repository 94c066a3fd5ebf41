"""The whole update learns: to repeat demonstrations, and what a reward asks for."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
from flax import nnx

from agenticrec_jax.losses import for_batch, grpo_loss, sft_loss
from agenticrec_jax.testing.metrics import means
from agenticrec_jax.testing.models import tiny_qwen3
from agenticrec_jax.training.groups import demonstration_groups, weighted_groups
from agenticrec_jax.training.learner import init_state, make_optimizer, make_update
from agenticrec_jax.training.packing import Packing, pack_groups
from agenticrec_jax.training.types import Demonstration
from agenticrec_jax.types import OBSERVATION, SAMPLED

WHOLE = Packing(10_000, prompt_buckets=8, completion_buckets=8)


def test_supervised_learning_learns():
    """The same update with groups of one memorises three demonstrations, observations apart."""
    rng = np.random.default_rng(3)
    origin = np.array([SAMPLED] * 3 + [OBSERVATION] * 2 + [SAMPLED] * 2, np.uint8)
    demonstrations = [[Demonstration(rng.integers(0, 96, 7), origin)] for _ in range(3)]
    groups = demonstration_groups([rng.integers(0, 96, 4) for _ in range(3)], demonstrations)
    graphdef, params = nnx.split(tiny_qwen3(num_layers=1, tie_word_embeddings=False))
    optimizer = make_optimizer(0.02, warmup_steps=3)
    update = make_update(graphdef, for_batch(sft_loss), optimizer)
    state = init_state(params, optimizer)
    batches = pack_groups(groups, WHOLE)
    for _ in range(40):
        state, metrics = update(state, batches)
    assert means(metrics)["nll"] < 0.05
    np.testing.assert_allclose(metrics["loss"][0], means(metrics)["nll"], rtol=1e-5)


def test_reinforcement_learns():
    """Sampled single tokens, rewarded when they equal the prompt's last: chance 0.1 to over 0.8."""
    rng = np.random.default_rng(4)
    graphdef, params = nnx.split(tiny_qwen3(num_layers=1, vocab_size=10))
    optimizer = make_optimizer(0.01)
    update = make_update(graphdef, for_batch(grpo_loss, normalizer=1.0), optimizer)
    state = init_state(params, optimizer)
    law = jax.jit(lambda p, ids: jax.nn.softmax(nnx.merge(graphdef, p)(ids)[:, -1]))
    prompts = np.stack([np.append(rng.integers(0, 10, 2), answer) for answer in range(10)])
    packing = replace(WHOLE, group_multiple=10)  # one shape, however many groups are dropped
    shares = []
    for _ in range(40):
        chances = np.asarray(law(state.params, prompts), np.float64)
        draws = [rng.choice(10, 8, p=chance / chance.sum()) for chance in chances]
        rollouts = [
            [
                SimpleNamespace(
                    ids=np.array([i]),
                    logprobs=np.log(chance[[i]]),
                    origin=np.array([SAMPLED], np.uint8),
                )
                for i in drawn
            ]
            for drawn, chance in zip(draws, chances, strict=True)
        ]
        rewards = (np.stack(draws) == prompts[:, -1:]).astype(np.float32)
        groups, _ = weighted_groups(prompts, rollouts, rewards)
        state, metrics = update(state, pack_groups(groups, packing))
        shares.append(rewards.mean())
        if "ratio" in metrics:
            assert means(metrics)["logprob_difference"] < 1e-4
    assert shares[0] < 0.25 and np.mean(shares[-3:]) > 0.8
