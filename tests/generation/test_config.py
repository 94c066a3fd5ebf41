"""Declared shapes hold everything that can happen; a bad size is refused by its name."""

import pytest

from agenticrec_jax.errors import InputError
from agenticrec_jax.generation.config import EngineConfig

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


@pytest.mark.parametrize(
    "change, says",
    [
        ({"prompt_buckets": (50, 20)}, "prompt_buckets"),
        ({"prompt_buckets": ()}, "prompt_buckets"),
        ({"splice_buckets": (0,)}, "splice_buckets"),
        ({"wait_fraction": 0.0}, "wait_fraction"),
        ({"least_steps": 40}, "least_steps 40 is not in 1..decode_steps 32"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"turn_tokens": -1}, "turn_tokens -1 is negative"),
        ({"tool_timeout": 0}, "tool_timeout 0 is not in"),
        ({"tool_timeout": float("inf")}, "tool_timeout inf is not in"),
        ({"window_buckets": (32,)}, "window_buckets"),
        ({"cache_dtype": "int4"}, "cache_dtype 'int4' is not known.* float32, bfloat16, int8"),
    ],
)
def test_a_bad_size_is_refused(change, says):
    with pytest.raises(InputError, match=says):
        EngineConfig(**{**SIZES, **change})
