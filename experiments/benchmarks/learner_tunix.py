"""The google-tunix side of ``experiments.benchmarks.learner`` (see ``peer_loop``).

An update is the jitted train step of its ``Trainer``, as ``Trainer.train`` calls it, with the loss
of its ``GRPOLearner``: ``grpo_loss_fn`` over ``compute_per_token_logps``, with entropy and the
gradient's norm among its metrics. KL has no weight and each batch is used once, so that, as in the
learner, neither a reference's nor older log-probs are computed.
"""

import json
import sys

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from peer_loop import Compilations, Stopwatch, serve
from tunix.rl.algo_core import grpo_loss_fn
from tunix.rl.common import TrainExample
from tunix.rl.grpo.grpo_learner import GRPOConfig
from tunix.rl.trainer import Trainer
from tunix.sft.peft_trainer import TrainingConfig
from tunix_policy import random_policy, versions

PAD = 0
NEVER = 2**30  # an id that no row has


class Tunix:
    """Its trainer on a random policy of a ``shape`` with our fields."""

    def __init__(self, shape: dict, members: int, learning_rate: float):
        self.model = random_policy(shape)
        grpo = GRPOConfig(num_generations=members, num_iterations=1, beta=0.0)
        grpo.temperature = 1.0  # set by the learner, of the sampler

        def loss(model, train_example, algo_config):
            return grpo_loss_fn(model, train_example, algo_config, pad_id=PAD, eos_id=NEVER)

        trainer = Trainer(
            self.model, optax.adamw(learning_rate), TrainingConfig(eval_every_n_steps=NEVER), dict
        )
        trainer.with_loss_fn(loss, has_aux=True)
        trainer.with_gen_model_input_fn(lambda x: {"train_example": x, "algo_config": grpo})
        self._step, _ = trainer.jit_train_and_eval_step(cache_nnx_graph=True)
        self.compilations = Compilations(jax.monitoring)

    def versions(self) -> dict:
        return versions(self.model)

    def update(self, prompt: list, completions: list, advantages: list) -> dict:
        """Runs one update on completions of one length after the prompt, which is repeated."""
        before = self.compilations.count
        prompts = jnp.array([prompt] * len(completions))
        completions = jnp.array(completions)
        example = TrainExample(
            prompt_ids=prompts,
            prompt_mask=prompts != PAD,
            completion_ids=completions,
            completion_mask=completions != PAD,
            advantages=jnp.array(advantages),
            ref_per_token_logps=None,
            old_per_token_logps=None,
        )
        with Stopwatch() as watch:
            report = self._step(example)
            jax.block_until_ready((report, nnx.state(self.model)))
        return watch.took | {
            "sampled": int(example.completion_mask.sum()),
            "compilations": self.compilations.count - before,
        }


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    assert jnp.zeros(()).dtype == jnp.float32
    shape, members, learning_rate = map(json.loads, sys.argv[1:])
    serve(lambda: Tunix(shape, members, learning_rate))
