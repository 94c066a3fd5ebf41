"""The google-tunix side of ``experiments.benchmarks.rollout`` (see ``peer_loop``)."""

import functools
import json
import sys

import jax
import jax.numpy as jnp
from peer_loop import Compilations, Stopwatch, converse, serve
from tunix.generate.sampler import CacheConfig, Sampler
from tunix_policy import random_policy, versions

PAD, NEVER = 0, 2**30


class Ids:
    """A tokenizer whose texts are ids with blanks between them."""

    def encode(self, text: str) -> list[int]:
        return [int(part) for part in text.split()]

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))

    def bos_id(self) -> int:
        return 0  # false to the sampler: none is put ahead

    def eos_id(self) -> int:
        return NEVER

    def pad_id(self) -> int:
        return PAD


class Tunix:
    """Its sampler on a random policy of the shape ``shape`` (fields of ours)."""

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
        """Conversations with ``new`` tokens a turn (see ``converse``).

        ``columns`` is the size of the cache. Works of different ``name`` have samplers of their
        own, that compile for themselves.
        """
        before, sampler = self.compilations.count, self.sampler(name, columns)

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
        done = {"sampled": sampled, "compilations": self.compilations.count - before}
        return watch.took | done


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    assert jnp.zeros(()).dtype == jnp.float32
    serve(lambda: Tunix(json.loads(sys.argv[1])))
