"""Any value of any field: a dataclass that trains, or one sentence that names the field."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from agenticrec_jax.errors import InputError
from agenticrec_jax.sequential.fields import number, switch, whole
from agenticrec_jax.sequential.objective import Objective
from agenticrec_jax.sequential.sasrec import Sasrec, SasrecConfig
from agenticrec_jax.sequential.shard_training import ShardTraining
from agenticrec_jax.sequential.training import SequentialTraining
from agenticrec_jax.testing.errors import assert_names, refused

VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 9)
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from([np.int32(4), np.float32(0.5), np.float64("nan"), 3 + 1j, "4", "a\nb"])
    | st.lists(st.integers(), max_size=2)
    | st.dictionaries(st.text(max_size=2), st.integers(), max_size=2)
)
INSTANCES = [SasrecConfig(9, 3, 8, 1, 2), SequentialTraining(), ShardTraining(), Objective()]
FIELDS = [(one, field.name) for one in INSTANCES for field in dataclasses.fields(one)]


def check_a_field(instance, name, value):
    """A taken value is stored as Python's own and in range, whatever it was given as."""
    try:
        stored = getattr(dataclasses.replace(instance, **{name: value}), name)
    except InputError as error:
        sentence = str(error)
        assert "\n" not in sentence and len(sentence) < 600
        # An own width may be refused for the heads that do not divide it.
        assert sentence.startswith((f"{name}: ", "heads: ")), sentence
        return
    kind = type(getattr(instance, name))
    if kind is float and isinstance(value, int):
        value = float(value)  # such as 2**53 + 1, which no float is
    assert stored == value
    assert type(stored) is kind
    if kind in (int, float):
        assert math.isfinite(stored) and stored >= 0


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(FIELDS), VALUES)
def test_any_value_of_any_field_is_taken_or_refused(field, value):
    check_a_field(*field, value)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(st.sampled_from(FIELDS), VALUES)
def test_any_value_of_any_field_is_taken_or_refused_often(field, value):
    check_a_field(*field, value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("heads", 3),
        ("heads", 0),
        ("width", 0),
        ("width", 8.0),
        ("max_length", 0),
        ("items", -1),
        ("blocks", 10**9),  # refused before it has memory
        ("blocks", True),
        ("dropout", 1.0),
        ("dropout", float("nan")),
        ("embedding_norm", "false"),
    ],
)
def test_sizes_of_no_network_are_refused(field, value):
    sentence = refused(lambda: SasrecConfig(**({"items": 9, "width": 8} | {field: value})))
    assert_names(sentence, f"{field}: found {value!r}")


@pytest.mark.parametrize("kind", [SequentialTraining, ShardTraining])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", float("nan")),
        ("learning_rate", -1e-3),
        ("learning_rate", "1e-3"),
        ("weight_decay", float("inf")),
        ("batch_size", 0),
        ("batch_size", 12.5),
        ("epochs", -1),
        ("seed", -1),
        ("objective", "softmax"),
    ],
)
def test_schedules_that_train_nothing_are_refused(kind, field, value):
    assert_names(refused(lambda: kind(**{field: value})), f"{field}: found {value!r}")


def test_every_size_in_range_gives_a_network():
    """Those at the low end, and numbers of numpy, which a saved file has as Python's own."""
    for config in (
        SasrecConfig(np.int64(1), max_length=1, width=1, blocks=0, heads=1, dropout=0),
        SasrecConfig(2, max_length=np.int32(2), width=6, blocks=1, heads=6, dropout=0.99),
    ):
        model = Sasrec(config, rngs=nnx.Rngs(0))
        assert model(jnp.zeros((1, config.max_length), int)).shape[-1] == config.width


def test_bounds_are_in_the_range_and_the_next_values_are_not():
    assert [whole("n", value, least=2, most=4) for value in (2, 4)] == [2, 4]
    for value in (1, 5):
        assert_names(refused(whole, "n", value, least=2, most=4), "n", value, "2 to 4")
    assert number("x", 0) == 0 and number("x", 1, above=0, below=2) == 1
    assert_names(refused(number, "x", 0, above=0), "x: found 0")
    assert_names(refused(number, "x", 2.0, below=2), "x: found 2.0")
    assert switch("on", False) is False
    assert_names(refused(switch, "on", 0), "on: found 0")
