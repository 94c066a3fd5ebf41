"""A fitted sequential model on disk: ``NAME.safetensors`` and ``NAME.json``.

The JSON file has the model's sizes, its fit range and the item ids in the order of their codes.
"""

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from agenticrec_jax import strict_json
from agenticrec_jax.data.splits import FitRange
from agenticrec_jax.errors import InputError, expect, shorten
from agenticrec_jax.paths import Path, local_file, make_directory, whole_file
from agenticrec_jax.sequential.model import SequentialConfig, SequentialModel


class SavedModel(NamedTuple):
    """Content of a saved model's files; a model's item codes index ``item_ids``."""

    model: SequentialModel
    item_ids: tuple[str, ...]
    fit_range: FitRange


def save_model(
    directory: str | os.PathLike,
    model: SequentialModel,
    item_ids: Sequence[str],
    fit_range: FitRange,
) -> None:
    """Writes a model as two files that are named after ``model.name``.

    Raises:
      InputError: the model has another number of items than there are ids, or the files cannot be
        written.
    """
    items = model.config.items
    expect(len(item_ids) == items, "item ids", len(item_ids), f"the model's {items}")
    directory = make_directory(directory)
    _, state = nnx.split(model)
    arrays = {
        _array_name(path): np.asarray(leaf.get_value()) for path, leaf in nnx.to_flat_state(state)
    }
    save_arrays(arrays, directory / f"{model.name}.safetensors")
    record = {
        "config": asdict(model.config),
        "fit_range": asdict(fit_range),
        "item_ids": list(item_ids),
    }
    text = strict_json.dumps(record, ensure_ascii=False)
    (directory / f"{model.name}.json").write_text(text, encoding="utf-8")


def save_arrays(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Writes named arrays as safetensors.

    Raises:
      InputError: the file cannot be written, as where a directory is.
    """
    try:
        with whole_file(path) as file:
            save_file(dict(arrays), file)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: cannot be written ({error})") from error


def load_model(
    directory: str | os.PathLike,
    model_type: type[SequentialModel],
    item_ids: Sequence[str] | None = None,
) -> SavedModel:
    """Reads the files that `save_model` wrote.

    Args:
      directory: the directory that the model was saved in.
      model_type: class of the model, such as ``Sasrec``.
      item_ids: ids of the catalog that the model has to be of; None accepts any catalog.

    Raises:
      InputError: a file is missing or unreadable, a field or an array is not what a saved model
        has, or the model was fitted on another catalog. Item codes index its embeddings, so the ids
        must be equal and in the same order.
    """
    needed = ("config", "fit_range", "item_ids")
    record, arrays = read_saved(directory, model_type.name, needed)
    path = Path(directory) / f"{model_type.name}.json"
    ids = record["item_ids"]
    are_ids = isinstance(ids, list) and all(isinstance(item, str) for item in ids)
    expect(are_ids and len(set(ids)) == len(ids), f"{path}: item_ids", ids, "different ids")
    if item_ids is not None:
        _check_catalog(path, saved=ids, catalog=item_ids)
    config = _read_config(path, record["config"], model_type)
    expect(len(ids) == config.items, f"{path}: item_ids", len(ids), f"config.items {config.items}")
    # Only shapes: sizes of a wrong record get no memory.
    abstract = nnx.eval_shape(lambda: model_type(config, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(abstract)
    leaves = nnx.to_flat_state(state)
    expected = {_array_name(key): leaf.get_value() for key, leaf in leaves}
    check_arrays(path.with_suffix(".safetensors"), arrays, expected)
    flat = [(key, leaf.replace(jnp.asarray(arrays[_array_name(key)]))) for key, leaf in leaves]
    model = nnx.merge(graphdef, nnx.from_flat_state(flat))
    fit_range = read_fit_range(path, record["fit_range"])
    return SavedModel(model, tuple(ids), fit_range)


def _read_config(path: Path, raw: Any, model_type: type[SequentialModel]) -> SequentialConfig:
    names = [field.name for field in fields(model_type.config_type)]
    is_known = isinstance(raw, dict) and all(name in names for name in raw)
    expect(is_known, f"{path}: config", raw, f"an object with {', '.join(names)}")
    try:
        return model_type.config_type(**raw)
    except InputError as error:
        raise InputError(f"{path}: config: {error}") from None
    except TypeError as error:  # a field without default is missing
        raise InputError(f"{path}: config: found {shorten(raw)}, expected all fields") from error


def read_fit_range(path: Path, raw: Any) -> FitRange:
    """Returns the fit range in a file's record; InputError if it is none."""
    counts = isinstance(raw, dict) and all(type(value) is int for value in raw.values())
    names = {field.name for field in fields(FitRange)}
    expected = f"an object with whole numbers {' and '.join(sorted(names))}"
    expect(counts and set(raw) == names, f"{path}: fit_range", raw, expected)
    return FitRange(**raw)


def check_arrays(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    expected: Mapping[str, jax.ShapeDtypeStruct],
    with_nan: Collection[str] = (),
) -> None:
    """Checks that a file has the expected arrays and no other, all finite.

    Args:
      path: of the file.
      arrays: that it has.
      expected: their shapes and dtypes.
      with_nan: names of those in which NaN stands for a value that is absent.

    Raises:
      InputError: names the file and the first array that is missing, too many or of another shape
        or dtype, or that has an infinity, or a NaN where none stands for an absent value.
    """
    for name in sorted(expected.keys() ^ arrays.keys()):
        where = f"{path}: array {name}"
        expect(name in arrays, where, None, "an array")
        expect(name in expected, where, "one", "no array of that name")
    for name in sorted(expected):
        where = f"{path}: array {name}"
        array, like = arrays[name], expected[name]
        layout = f"{array.dtype}{list(array.shape)}"
        fits = array.shape == like.shape and array.dtype == like.dtype
        expect(fits, where, layout, f"{like.dtype}{list(like.shape)}")
        is_finite = bool((~np.isinf(array) if name in with_nan else np.isfinite(array)).all())
        expect(is_finite, where, "a NaN or an infinity", "finite numbers")


def read_saved(
    directory: str | os.PathLike, stem: str, fields: Sequence[str]
) -> tuple[dict, dict[str, np.ndarray]]:
    """Returns the record of ``stem.json`` and the arrays of ``stem.safetensors``.

    Raises:
      InputError: a file is missing or unreadable, or the record lacks one of ``fields``.
    """
    directory = Path(directory)
    for name in (f"{stem}.json", f"{stem}.safetensors"):
        if not (directory / name).is_file():
            raise InputError(f"{directory}: found no {name}, expected a saved {stem}")
    path = directory / f"{stem}.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        path = directory / f"{stem}.safetensors"
        arrays = load_file(local_file(path))
    # A dtype that numpy has not, such as one of 8 bits, is an AttributeError.
    except (ValueError, OSError, RecursionError, SafetensorError, AttributeError) as error:
        raise InputError(f"{path}: found an unreadable {stem} ({error})") from error
    for field in fields:
        if not isinstance(record, dict) or field not in record:
            raise InputError(f"{directory}/{stem}.json: found no field {field!r}, expected one")
    return record, arrays


def _check_catalog(path: Path, *, saved: Sequence[str], catalog: Sequence[str]) -> None:
    size = len(catalog)
    expect(len(saved) == size, f"{path}, items of the model", len(saved), f"the catalog's {size}")
    for code, (old, new) in enumerate(zip(saved, catalog, strict=True)):
        if old != new:
            raise InputError(f"{path}, item {code}: found {old!r}, expected {new!r}")


def _array_name(path: tuple) -> str:
    return ".".join(map(str, path))
