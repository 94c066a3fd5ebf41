"""The google-tunix side of ``experiments.benchmarks.rollout`` (see ``peer_loop``)."""

import functools
import json
import sys

import jax
import jax.numpy as jnp
from peer_loop import Compilations, Stopwatch, converse, serve
from tunix.generate.sampler import CacheConfig, Sampler
from tunix_policy import random_policy, versions

PAD = 0
NEVER = 2**30  # an id that is never sampled


class Ids:
    """A tokenizer whose texts are ids, separated by blanks."""

    def encode(self, text: str) -> list[int]:
        return [int(number) for number in text.split()]

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))

    def bos_id(self) -> int:
        return 0  # the sampler prepends no id that is 0

    def eos_id(self) -> int:
        return NEVER

    def pad_id(self) -> int:
        return PAD


class Tunix:
    """Its sampler on a random policy of a ``shape`` with our fields."""

    def __init__(self, shape: dict):
        self.model = random_policy(shape)
        self.sampler = functools.cache(self._sampler)
        self.compilations = Compilations(jax.monitoring)

    def _sampler(self, name: str, columns: int) -> Sampler:
        config = self.model.config
        sizes = CacheConfig(columns, config.num_layers, config.num_kv_heads, config.head_dim)
        return Sampler(self.model, Ids(), sizes)

    def versions(self) -> dict:
        return versions(self.model)

    def rollout(
        self,
        name: str,
        prompts: list,
        observations: list,
        new: int,
        columns: int,
        top_p: float,
        seed: int,
    ) -> dict:
        """Runs conversations with ``new`` tokens a turn (see ``converse``).

        ``columns`` is the size of the cache. Each ``name`` has a sampler, which compiles anew.
        """
        before = self.compilations.count
        sampler = self.sampler(name, columns)

        def sample(rows: list, turn: int) -> tuple[list, int]:
            out = sampler(
                [" ".join(map(str, row)) for row in rows],
                max_generation_steps=new,
                return_logprobs=True,
                eos_tokens=[NEVER],
                temperature=1.0,
                top_p=top_p,
                seed=seed + turn,
            )
            return [ids.tolist() for ids in out.tokens], sum(map(len, out.logprobs))

        with Stopwatch() as watch:
            sampled = converse(prompts, observations, sample)
        return watch.took | {
            "sampled": sampled,
            "compilations": self.compilations.count - before,
        }


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    assert jnp.zeros(()).dtype == jnp.float32
    serve(lambda: Tunix(json.loads(sys.argv[1])))
