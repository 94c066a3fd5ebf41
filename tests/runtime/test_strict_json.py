"""JSON files have no NaN, whatever is written to them."""

import json
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from agenticrec_jax.runtime import strict_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


def refuse(constant):
    raise AssertionError(constant)


def same(value, read):
    if isinstance(value, float) and not math.isfinite(value):
        return read is None
    if isinstance(value, list | tuple):
        return len(value) == len(read) and all(map(same, value, read))
    if isinstance(value, dict):
        return value.keys() == read.keys() and all(same(value[k], read[k]) for k in value)
    return value == read and type(value) is type(read)


@settings(max_examples=100, deadline=None)
@given(VALUES)
def test_every_number_that_is_not_finite_is_null(value):
    assert same(value, json.loads(strict_json.dumps(value), parse_constant=refuse))
