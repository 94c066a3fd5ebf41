"""Measures the cost in accuracy and the savings of a narrower key-value cache.

``python -m experiments.benchmarks.cache_dtype --json=FILE [--policy=DIR]`` ranks samples of valid
greedily with the config's policy, once for each ``engine.cache_dtype``, and reports of each:

- ``bytes of a slot``;
- ``log-probs`` of the sampled ids, against one plain float32 forward pass of the same ids: mean and
  largest difference;
- ``greedy ids`` equal to those of the float32 cache: whole rows, and tokens before the first that
  differs;
- ``NDCG@10``;
- ``evaluation``: CPU seconds of a second, compiled run.

``attention`` is the relative error of its output on random numbers, with channels of equal scale
and with one channel that is ``OUTLIER`` times the others, as in many language models. With
``--policy``, such as a directory of ``experiments.convert_smollm2``, the perplexity of a paragraph
is measured token by token through the cache; ``peer`` is that of one plain forward pass.
"""

import contextlib
import dataclasses
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx
from transformers import AutoTokenizer

from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.cli import app
from agenticrec_jax.cli.configs import define_config
from agenticrec_jax.data.examples import evenly_spread
from agenticrec_jax.evaluation.evaluator import evaluate
from agenticrec_jax.generation import kv_cache
from agenticrec_jax.generation.engine import Engine
from agenticrec_jax.metrics.ranking import ndcg_at_k
from agenticrec_jax.models.attention import attend
from agenticrec_jax.models.io.huggingface import load_policy
from agenticrec_jax.models.masks import KV, Masks
from agenticrec_jax.models.qwen3 import Qwen3
from agenticrec_jax.runs import Run, RunConfig, run_config
from agenticrec_jax.runs.policy import Policy
from agenticrec_jax.types import SAMPLED
from experiments.benchmarks.figures import figure, publish
from experiments.benchmarks.smollm2 import PARAGRAPH, perplexity

DTYPES = ("float32", "bfloat16", "int8")
OUTLIER = 30.0


def rankings(
    config: RunConfig,
    workdir: str,
    count: int,
    *,
    setting: str = "cache_dtype",
    sizes: Callable[[str, Engine, Any], dict] = lambda dtype, engine, params: figure(
        f"{dtype}: bytes of a slot", "KiB", slot_bytes(engine, params) / 1024
    ),
) -> list[dict]:
    """Returns the rows of ``count`` samples of valid, ranked with each dtype.

    Args:
      config: of the run; the policy computes in float32.
      workdir: of the artifacts.
      count: number of samples.
      setting: of the engine, which has each dtype in turn.
      sizes: returns the row of memory of a dtype.
    """
    run = Run(config, workdir)
    policy = run.policy
    agent = run.evaluation_agent
    examples = evenly_spread(run.data.examples["valid"], count)
    rows = []
    first = None  # the trajectories with a float32 cache
    for dtype in DTYPES:
        # The dtype that the policy computes in is the default of every setting.
        narrow = "" if dtype == DTYPES[0] else dtype
        narrow_engine = dataclasses.replace(config.engine, **{setting: narrow})
        changed = dataclasses.replace(config, engine=narrow_engine)
        engine = Run(changed, workdir, policy=policy).engine
        trajectories, seconds = _twice(
            lambda engine: evaluate(agent, engine, policy.params, examples), engine
        )
        first = first or trajectories
        ndcg, first_ndcg = (ndcg_at_k([t.rank for t in each], 10) for each in (trajectories, first))
        rows += [
            sizes(dtype, engine, policy.params),
            *_differences(dtype, policy, trajectories),
            *_agreement(dtype, trajectories, first),
            figure(f"{dtype}: NDCG@10, {len(examples)} samples", "", ndcg, first_ndcg, DTYPES[0]),
            figure(f"{dtype}: evaluation", "CPU-s", seconds),
        ]
    return rows


def _twice(run, engine: Engine) -> tuple[list[Trajectory], float]:
    run(engine)
    start = time.process_time()
    return run(engine), time.process_time() - start


def slot_bytes(engine: Engine, params) -> float:
    """Returns the bytes of the keys and values of one slot."""
    leaves = jax.tree.leaves(engine.abstract_state(params).cache)
    return sum(x.size * x.dtype.itemsize for x in leaves) / engine.config.slots


def _differences(dtype: str, policy: Policy, trajectories: Sequence[Trajectory]) -> list[dict]:
    pairs = zip(trajectories, plain_logprobs(policy, trajectories), strict=True)
    gaps = [np.abs(t.logprobs - plain)[t.origin == SAMPLED] for t, plain in pairs]
    gaps = np.concatenate(gaps) * 1e6
    return [
        figure(f"{dtype}: log-probs, {name} difference", "millionths", value)
        for name, value in (("mean", gaps.mean()), ("largest", gaps.max()))
    ]


def plain_logprobs(policy: Policy, trajectories: Sequence[Trajectory]) -> list[np.ndarray]:
    """Returns log-probs [T] of each trajectory's ids by one forward pass over prompt and ids."""
    rows = [[*t.prompt, *t.ids] for t in trajectories]
    longest = max(map(len, rows))

    @jax.jit
    def score(params, row):
        logits = nnx.merge(policy.graphdef, params)(row[None])[0, :-1]
        return jnp.take_along_axis(jax.nn.log_softmax(logits), row[1:, None], axis=1)[:, 0]

    scores = [score(policy.params, np.pad(row, (0, longest - len(row)))) for row in rows]
    return [
        np.asarray(score)[len(t.prompt) - 1 :][: len(t.ids)]
        for t, score in zip(trajectories, scores, strict=True)
    ]


def _agreement(
    dtype: str, trajectories: Sequence[Trajectory], first: Sequence[Trajectory]
) -> list[dict]:
    ids = [(a.ids.tolist(), b.ids.tolist()) for a, b in zip(trajectories, first, strict=True)]
    same = [_same(a, b) for a, b in ids]
    whole = np.mean([a == b for a, b in ids])
    share = np.sum(same) / sum(len(b) for _, b in ids)
    return [
        figure(f"{dtype}: greedy ids, whole rows", "share equal", whole),
        figure(f"{dtype}: greedy ids, before the first other", "share of tokens", share),
    ]


def _same(a: list[int], b: list[int]) -> int:
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def attention_errors(columns: int = 256, heads: int = 2, width: int = 64) -> list[dict]:
    """Returns the rows of synthetic attention: 64 queries, each over ``columns`` cached keys."""
    rng = np.random.default_rng(0)
    q, new, k, v = (
        jnp.asarray(rng.normal(size=(64, length, heads, width)), jnp.float32)
        for length in (1, 1, columns, columns)
    )
    spread = k.at[..., 7].multiply(OUTLIER)
    rows = []
    for dtype in DTYPES[1:]:
        for name, keys in (("even keys", k), (f"one channel x {OUTLIER:g}", spread)):
            kv = KV((keys,), (v,))
            output = _attended(q, new, kv, dtype)
            exact = _attended(q, new, kv, "float32")
            error = jnp.linalg.norm(output - exact) / jnp.linalg.norm(exact)
            rows.append(figure(f"{dtype}: attention, {name}", "% of its output", 100 * error))
    return rows


def _attended(q: jax.Array, new: jax.Array, kv: KV, dtype: str) -> jax.Array:
    """Attends from ``q`` to the ``new`` key and value, and to ``kv`` in a cache of ``dtype``."""
    rows = np.arange(len(q))
    cache = kv_cache.allocate(kv, len(q), kv.k[0].shape[1], dtype)
    cache = kv_cache.enter(cache, rows, kv, rows, shards=1)
    seen = jnp.ones((len(q), cache.columns), bool)
    past = kv_cache.view(cache.k[0], cache.v[0], q[:, 0], "float32")
    return attend(q, new, new, Masks(seen[:, :1], context=seen), past)


def cached_perplexity(model: Qwen3, ids: Sequence[int], dtype: str) -> float:
    """Returns the perplexity of ``ids`` after the first, decoded one by one with the cache."""
    graphdef, params = nnx.split(model)
    row = jnp.array(ids)
    one = jnp.ones((1, 1), bool)

    @jax.jit
    def run(params):
        model = nnx.merge(graphdef, params)
        _, kv = jax.eval_shape(lambda x: model.forward(x, x, one), row[None, :1])
        cache = kv_cache.allocate(kv, 1, len(ids), dtype)

        def step(cache, t):
            past = (jnp.arange(len(ids)) < t)[None]
            context = kv_cache.context(cache, past, model.config.dtype)
            hidden, new = model.forward(row[t][None, None], t[None, None], one, context)
            logprobs = jax.nn.log_softmax(model.logits(hidden[0, 0]))
            return kv_cache.write_column(cache, t, new), logprobs[row[t + 1]]

        return jax.lax.scan(step, cache, jnp.arange(len(ids) - 1))[1]

    return math.exp(-float(run(params).mean()))


def perplexities(directory: str) -> list[dict]:
    """Returns the rows of a language model's perplexity."""
    model = load_policy(directory, dtype="float32")
    ids = AutoTokenizer.from_pretrained(directory).encode(PARAGRAPH, add_special_tokens=False)
    plain = perplexity(model, ids)
    return [
        figure(
            f"{dtype}: perplexity of {len(ids)} tokens",
            "",
            cached_perplexity(model, ids, dtype),
            plain,
            "one plain forward",
        )
        for dtype in DTYPES
    ]


def measure(config: RunConfig, workdir: str, count: int, directory: str) -> list[dict]:
    """Returns all rows; those of a language model if ``directory`` is not empty."""
    rows = rankings(config, workdir, count) + attention_errors()
    return rows + (perplexities(directory) if directory else [])


def main(argv) -> None:
    del argv
    values = _CONFIG.value
    values.engine.update({"slots": _EXAMPLES.value, "row_buckets": (_EXAMPLES.value,)})
    config = run_config(values)
    with contextlib.ExitStack() as stack:
        workdir = _WORKDIR.value or stack.enter_context(tempfile.TemporaryDirectory())
        publish(lambda: measure(config, workdir, _EXAMPLES.value, _POLICY.value), _JSON.value)


if __name__ == "__main__":
    _JSON = flags.DEFINE_string("json", "", "File to write the figures to; empty for none.")
    _POLICY = flags.DEFINE_string("policy", "", "Language model for perplexity; empty for none.")
    _WORKDIR = flags.DEFINE_string(
        "workdir", "", "Directory of the artifacts; a temporary one if empty."
    )
    _EXAMPLES = flags.DEFINE_integer("examples", 100, "Samples to rank.", lower_bound=1)
    _CONFIG = define_config()
    app.run(main)
