"""Measures the cost in accuracy and the savings of narrower weights in the engine.

``python -m experiments.benchmarks.weight_dtype --json=FILE`` reports the bytes of the engine's
weights of published models, computed from their shapes, by ``engine.weight_dtype``. float32 is a
policy that computes in float32; bfloat16 is also what one that computes in bfloat16 has without the
setting. Then it ranks samples of valid greedily with the config's policy, as ``cache_dtype`` does
for the cache: bytes, differences of log-probs from one plain forward pass with the learner's
weights, greedy ids equal to those of float32 weights, NDCG@10, and CPU seconds.
"""

import contextlib
import dataclasses
import tempfile
from typing import Any

import jax
from absl import flags
from flax import nnx

from agenticrec_jax.cli import app
from agenticrec_jax.cli.configs import define_config
from agenticrec_jax.generation.engine import Engine
from agenticrec_jax.models.qwen3 import Qwen3, Qwen3Config
from agenticrec_jax.runs import RunConfig, run_config
from experiments.benchmarks.cache_dtype import DTYPES, rankings
from experiments.benchmarks.figures import figure, publish
from experiments.benchmarks.shapes import QWEN3

MODELS = ("Qwen3-0.6B", "Qwen3-1.7B", "Qwen3-4B", "Qwen3-8B")


def weight_bytes(engine: Engine, params: Any) -> int:
    """Returns the bytes of the weights that an engine samples with, of all devices together."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(engine.abstract_params(params)))


def sizes(config: RunConfig, shape: Qwen3Config) -> dict[str, int]:
    """Returns the bytes of the engine's weights of a model by their dtype, from its shape."""
    shape = dataclasses.replace(shape, dtype="float32", param_dtype="float32", scan_layers=True)
    graphdef, params = nnx.split(nnx.eval_shape(lambda: Qwen3(shape, rngs=nnx.Rngs(0))))
    result = {}
    for dtype in DTYPES:
        narrow = "" if dtype == DTYPES[0] else dtype
        engine_config = dataclasses.replace(config.engine, weight_dtype=narrow)
        result[dtype] = weight_bytes(Engine(graphdef, engine_config, 1, (2,), 0), params)
    return result


def published(config: RunConfig, name: str) -> list[dict]:
    """Returns the rows of a published model."""
    of_dtype = sizes(config, QWEN3[name])
    whole = of_dtype[DTYPES[0]] / 2**30
    return [
        figure(f"{name}: weights, {dtype}", "GiB", size / 2**30, whole, DTYPES[0])
        for dtype, size in of_dtype.items()
    ]


def measure(config: RunConfig, workdir: str, count: int) -> list[dict]:
    """Returns all rows, without samples those of the published models alone."""
    rows = [row for name in MODELS for row in published(config, name)]
    if not count:
        return rows
    return rows + rankings(
        config,
        workdir,
        count,
        setting="weight_dtype",
        sizes=lambda dtype, engine, params: figure(
            f"{dtype}: weights", "KiB", weight_bytes(engine, params) / 1024
        ),
    )


def main(argv) -> None:
    del argv
    values = _CONFIG.value
    slots = max(_EXAMPLES.value, 1)
    values.engine.update({"slots": slots, "row_buckets": (slots,)})
    config = run_config(values)
    with contextlib.ExitStack() as stack:
        workdir = _WORKDIR.value or stack.enter_context(tempfile.TemporaryDirectory())
        publish(lambda: measure(config, workdir, _EXAMPLES.value), _JSON.value)


if __name__ == "__main__":
    _JSON = flags.DEFINE_string("json", "", "File to write the figures to; empty for none.")
    _WORKDIR = flags.DEFINE_string(
        "workdir", "", "Directory of the artifacts; a temporary one if empty."
    )
    _EXAMPLES = flags.DEFINE_integer("examples", 100, "Samples to rank; 0: none.", lower_bound=0)
    _CONFIG = define_config()
    app.run(main)
