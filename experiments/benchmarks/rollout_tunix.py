"""The google-tunix side of ``experiments.benchmarks.rollout`` (see ``peer_loop``)."""

import functools
import json
import sys
from importlib import metadata

import jax
import jax.numpy as jnp
from flax import nnx
from peer_loop import Stopwatch, converse, serve
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.qwen3.model import ModelConfig, Qwen3

PAD, NEVER = 0, 2**30
COMPILED = "/jax/core/compile/backend_compile_duration"


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
        config = ModelConfig(
            num_layers=shape["num_layers"],
            vocab_size=shape["vocab_size"],
            embed_dim=shape["hidden_size"],
            hidden_dim=shape["intermediate_size"],
            num_heads=shape["num_heads"],
            head_dim=shape["head_dim"],
            num_kv_heads=shape["num_kv_heads"],
            rope_theta=int(shape["rope_theta"]),
            norm_eps=shape["rms_norm_eps"],
            use_tied_embedding=shape["tie_word_embeddings"],
        )
        self.model = Qwen3(config, rngs=nnx.Rngs(0))
        self.sampler = functools.cache(self._sampler)
        self.compilations = 0
        jax.monitoring.register_event_duration_secs_listener(self._count)

    def _sampler(self, name: str, columns: int) -> Sampler:
        config = self.model.config
        sizes = CacheConfig(columns, config.num_layers, config.num_kv_heads, config.head_dim)
        return Sampler(self.model, Ids(), sizes)

    def _count(self, event: str, seconds: float, **rest) -> None:
        self.compilations += event == COMPILED

    def versions(self) -> dict:
        parameters = sum(x.size for x in jax.tree.leaves(nnx.state(self.model)))
        return {"name": f"google-tunix {metadata.version('google-tunix')}", "size": parameters}

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
        before, sampler = self.compilations, self.sampler(name, columns)

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
        done = {"sampled": sampled, "compilations": self.compilations - before}
        return watch.took | done


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    assert jnp.zeros(()).dtype == jnp.float32
    serve(lambda: Tunix(json.loads(sys.argv[1])))
