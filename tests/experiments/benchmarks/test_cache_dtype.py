"""The benchmark's rows on a small log, and its measures beside their definitions."""

import jax
import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.cli.configs import load_config
from agenticrec_jax.runs import run_config
from agenticrec_jax.testing.models import tiny_qwen3
from experiments.benchmarks import cache_dtype
from experiments.benchmarks.cache_dtype import DTYPES
from experiments.benchmarks.smollm2 import perplexity


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    workdir = str(tmp_path_factory.mktemp("world"))
    rankings = cache_dtype.rankings(run_config(load_config("office:smoke")), workdir, 6)
    return {row["name"]: row for row in rankings}


@pytest.mark.slow
def test_a_narrow_cache_saves_bytes_and_costs_little(rows):
    def ours(dtype, what):
        return next(
            row["ours"] for name, row in rows.items() if name.startswith(f"{dtype}: {what}")
        )

    wide, half, quarter = (ours(dtype, "bytes") for dtype in cache_dtype.DTYPES)
    assert wide == 2 * half and quarter == pytest.approx(wide * (64 + 4) / 256, abs=1e-3)
    mean = [ours(dtype, "log-probs, mean") for dtype in cache_dtype.DTYPES]
    assert mean[0] < 10 < mean[1] < 1e4 and 10 < mean[2] < 1e4
    assert ours("float32", "greedy ids, whole rows") == 1
    assert ours("int8", "greedy ids, before") > 0.5
    assert all(0 <= ours(dtype, "NDCG@10") <= 1 for dtype in cache_dtype.DTYPES)


def test_an_outlying_channel_costs_int8_much_and_bfloat16_little():
    errors = [row["ours"] for row in cache_dtype.attention_errors(columns=64)]
    half, spread_half, eighth, spread_eighth = errors
    assert spread_eighth > 5 * eighth > half > 0
    assert spread_half < 4 * half and eighth < 3


def test_perplexity_through_the_cache_is_that_of_a_plain_forward():
    graphdef, params = nnx.split(tiny_qwen3(1, vocab_size=50))
    params = jax.tree.map(
        lambda x: 3 * x if x.ndim > 1 else x, params
    )  # large weights: the context matters
    model = nnx.merge(graphdef, params)
    ids = np.random.default_rng(0).integers(0, 50, 40).tolist()
    plain = perplexity(model, ids)
    apart = [abs(cache_dtype.cached_perplexity(model, ids, x) / plain - 1) for x in DTYPES]
    assert apart[0] < 1e-5 and all(3 * apart[0] < x < 0.05 for x in apart[1:])
