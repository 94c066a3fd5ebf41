"""Declared shapes hold everything that can happen; a bad size is refused by its name."""

import threading

import jax.numpy as jnp
import pytest

from agenticrec_jax.generation.config import EngineConfig
from agenticrec_jax.testing.errors import assert_names, refused

SIZES = {"slots": 24, "prompt_buckets": (20, 50), "splice_buckets": (8,), "max_tokens": 70}


def test_buckets_reach_the_largest_row_and_no_further():
    config = EngineConfig(**SIZES, decode_steps=32)
    assert config.columns >= 50 + 70 + 32 - 1
    assert config.windows()[-1] == config.columns and len(config.windows()) == 4
    assert config.rows(1) == (3, 6, 12, 18, 24) and config.rows(2)[-1] == 12


def test_given_buckets_end_in_the_whole():
    config = EngineConfig(**SIZES, row_buckets=(5, 100), window_buckets=(64, 96))
    assert config.rows(1) == (5, 24)
    assert config.windows() == (64, 96, config.columns)


def test_pages_are_whole_in_every_window():
    config = EngineConfig(**SIZES, window_buckets=(64, 100), page_tokens=32)
    assert config.windows() == (64, 128, config.columns) and config.columns % 32 == 0
    row = 50 + 70  # 4 pages of 32, and the one of a prompt that is held
    assert config.pool_pages(1) == 24 * 5 and config.pool_pages(2) == 12 * 5
    assert EngineConfig(**SIZES, page_tokens=32, pages=10).pool_pages(2) == 5
    assert config.columns >= row + 32 and EngineConfig(**SIZES).pool_pages(1) == 0


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"prompt_buckets": (50, 20)}, ["ascending"]),
        ({"prompt_buckets": ()}, ["at least one"]),
        ({"splice_buckets": (0,)}, ["ascending", "positive"]),
        ({"wait_fraction": 0.0}, [0, 1]),
        ({"least_steps": 40}, ["1 to", "decode_steps 32"]),
        ({"max_tokens": 0}, ["at least 1"]),
        ({"slots": 0}, ["at least 1"]),
        ({"tool_threads": -2}, ["at least 1"]),
        ({"turn_tokens": -1}, [0]),
        ({"tool_timeout": 0}, ["above 0"]),
        ({"tool_timeout": float("inf")}, [f"{threading.TIMEOUT_MAX:.0f}"]),
        ({"window_buckets": (32,)}, ["decode_steps 32"]),
        ({"cache_dtype": "int4"}, ["float32", "bfloat16", "int8"]),
        ({"page_tokens": 24}, ["16", "32", "64", "128"]),
        ({"page_tokens": -849}, ["16", "32", "64", "128"]),
        ({"pages": 100}, ["0 where page_tokens is 0"]),
    ],
)
def test_a_bad_size_is_refused(change, expected):
    [(field, value)] = change.items()
    sentence = refused(EngineConfig, **{**SIZES, **change})
    assert sentence.startswith(f"{field}: found {value!r}, ")
    assert_names(sentence, *expected)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.dtype("bfloat16"), "bfloat16"], ids=str)
def test_the_dtype_of_the_cache_is_whatever_jax_takes_as_one(dtype):
    assert EngineConfig(**SIZES, cache_dtype=dtype).cache_dtype == "bfloat16"
