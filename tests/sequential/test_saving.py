"""Saved models: their files come back, and other ones are refused."""

import json

import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from agenticrec_jax.data.splits import FitRange
from agenticrec_jax.errors import InputError
from agenticrec_jax.sequential.model import user_states
from agenticrec_jax.sequential.sasrec import Sasrec, SasrecConfig
from agenticrec_jax.sequential.saving import load_model, save_arrays, save_model
from agenticrec_jax.testing.errors import assert_names, refused

IDS = [f"item {n}" for n in range(23)]


def test_a_saved_model_comes_back_with_its_range(model, tmp_path):
    save_model(tmp_path, model, IDS, FitRange(77, 5))
    for item_ids in (IDS, None):
        saved = load_model(tmp_path, Sasrec, item_ids)
        assert saved.fit_range == FitRange(77, 5)
        assert saved.model.config == model.config
        assert list(saved.item_ids) == IDS
        histories = [(1, 2), (3,)]
        np.testing.assert_array_equal(
            user_states(model, histories), user_states(saved.model, histories)
        )


def test_another_catalog_is_refused(model, tmp_path):
    save_model(tmp_path, model, IDS, FitRange(77, 5))
    swapped = [IDS[0], IDS[2], IDS[1], *IDS[3:]]
    sentence = refused(load_model, tmp_path, Sasrec, swapped)
    assert_names(sentence, tmp_path / "sasrec.json", "item 1:", "found 'item 1'", "'item 2'")
    sentence = refused(load_model, tmp_path, Sasrec, IDS[:-1])
    assert_names(sentence, tmp_path / "sasrec.json", "found 23", 22)


def test_a_directory_without_a_model_is_refused(tmp_path):
    assert_names(refused(load_model, tmp_path, Sasrec, []), tmp_path, "sasrec.json")


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("sasrec.json", b"{", "unreadable sasrec"),
        ("sasrec.json", b"{}", "sasrec.json: found no field 'config'"),
        ("sasrec.json", b"[" * 100_000, "unreadable sasrec"),
        ("sasrec.json", b"\xff", "unreadable sasrec"),
        ("sasrec.safetensors", b"123", "unreadable sasrec"),
    ],
)
def test_broken_files_are_refused(model, tmp_path, name, content, named):
    save_model(tmp_path, model, IDS, FitRange(77, 5))
    (tmp_path / name).write_bytes(content)
    assert_names(refused(load_model, tmp_path, Sasrec, IDS), tmp_path, named)


SMALL = SasrecConfig(items=5, max_length=3, width=4, blocks=1, heads=2, dropout=0.25)
SMALL_IDS = list("abcde")
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 9)
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A directory with a model whose files a test may change, its record and its arrays."""
    directory = tmp_path_factory.mktemp("small")
    save_model(directory, Sasrec(SMALL, rngs=nnx.Rngs(0)), SMALL_IDS, FitRange(77, 5))
    record = json.loads((directory / "sasrec.json").read_text())
    return directory, record, load_file(directory / "sasrec.safetensors")


def check_a_field(small, path, value):
    """The model loads as the record says, or one sentence names the file."""
    directory, record, arrays = small
    changed = json.loads(json.dumps(record))
    inner = changed
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    (directory / "sasrec.json").write_text(json.dumps(changed))
    save_file(arrays, directory / "sasrec.safetensors")
    try:
        saved = load_model(directory, Sasrec)
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 1200
        assert "sasrec" in str(error)
        return
    # Another number of heads, rate or range has arrays of the same shapes.
    assert list(saved.item_ids) == changed["item_ids"]
    assert [saved.fit_range.end_time, saved.fit_range.events] == [
        changed["fit_range"][name] for name in ("end_time", "events")
    ]
    for name, stored in changed["config"].items():
        assert getattr(saved.model.config, name) == stored
    assert user_states(saved.model, [[1, 2]]).shape == (1, 4)


PATHS = [("config",), ("fit_range",), ("item_ids",), ("other",)]
PATHS += [("config", name) for name in (*vars(SMALL), "depth")]
PATHS += [("fit_range", name) for name in ("end_time", "events", "start")]
PATHS += [("item_ids", 2)]


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(PATHS), VALUES)
def test_any_value_in_the_record_is_read_or_refused(small, path, value):
    check_a_field(small, path, value)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(PATHS), VALUES)
def test_any_value_in_the_record_is_read_or_refused_often(small, path, value):
    check_a_field(small, path, value)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("blocks", 0, ["array blocks.0"]),  # the file has one more
        ("blocks", 2, ["array blocks.1"]),
        ("width", 2, ["array blocks.0.attention_norm.bias", "[4]", "[2]"]),
        ("items", 4, ["item_ids", 5, 4]),
        ("max_length", 2, ["array places.embedding", "[3, 4]", "[2, 4]"]),
        ("embedding_norm", True, ["array embedding_norm."]),
        ("heads", 3, ["sasrec.json: config: heads", 3, 4]),
        ("width", "4", ["sasrec.json: config: width", "'4'"]),
    ],
)
def test_a_record_of_another_model_than_the_arrays_is_refused(small, field, value, named):
    directory, record, arrays = small
    save_file(arrays, directory / "sasrec.safetensors")
    changed = record | {"config": record["config"] | {field: value}}
    (directory / "sasrec.json").write_text(json.dumps(changed))
    assert_names(refused(load_model, directory, Sasrec), directory, *named)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda arrays: arrays.pop("norm.scale"), ["norm.scale"]),
        (lambda arrays: arrays.update(extra=np.ones(2, np.float32)), ["extra"]),
        (lambda arrays: arrays["norm.bias"].__setitem__(1, np.nan), ["norm.bias", "NaN"]),
        (lambda arrays: arrays.update({"norm.bias": np.ones(4, np.int32)}), ["norm.bias", "int32"]),
        (
            lambda arrays: arrays.update({"norm.bias": np.ones(4, ml_dtypes.bfloat16)}),
            ["norm.bias", "bfloat16"],
        ),
        (
            lambda arrays: arrays.update({"norm.bias": np.ones(4, ml_dtypes.float8_e4m3fn)}),
            ["unreadable"],  # numpy has no such dtype
        ),
    ],
)
def test_arrays_that_are_not_the_models_are_refused(small, change, named):
    directory, record, arrays = small
    (directory / "sasrec.json").write_text(json.dumps(record))
    arrays = {name: array.copy() for name, array in arrays.items()}
    change(arrays)
    save_file(arrays, directory / "sasrec.safetensors")
    assert_names(refused(load_model, directory, Sasrec), directory / "sasrec.safetensors", *named)


def test_a_model_is_saved_with_an_id_for_each_item_only(tmp_path):
    model = Sasrec(SMALL, rngs=nnx.Rngs(0))
    sentence = refused(save_model, tmp_path, model, SMALL_IDS[:-1], FitRange(77, 5))
    assert_names(sentence, "item ids", "found 4", 5)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    for name in ("sasrec.safetensors", "artifacts.safetensors"):
        (tmp_path / name).mkdir()
        assert_names(refused(save_arrays, {"a": np.ones(2)}, tmp_path / name), tmp_path / name)
