"""A fitted sequential model on disk: ``NAME.safetensors`` and ``NAME.json``.

The JSON file has the model's sizes, its fit range and the item ids in the order of their codes.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from agenticrec_jax import strict_json
from agenticrec_jax.data.splits import FitRange
from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.paths import make_directory
from agenticrec_jax.sequential.model import SequentialModel


class SavedModel(NamedTuple):
    """Content of a saved model's files; a model's item codes index ``item_ids``."""

    model: SequentialModel
    item_ids: tuple[str, ...]
    fit_range: FitRange


def save_model(
    directory: str | Path, model: SequentialModel, item_ids: Sequence[str], fit_range: FitRange
) -> None:
    """Writes a model as two files that are named after ``model.name``."""
    directory = make_directory(directory)
    _, state = nnx.split(model)
    arrays = {
        _array_name(path): np.asarray(leaf.get_value()) for path, leaf in nnx.to_flat_state(state)
    }
    save_file(arrays, directory / f"{model.name}.safetensors")
    record = {
        "config": asdict(model.config),
        "fit_range": asdict(fit_range),
        "item_ids": list(item_ids),
    }
    text = strict_json.dumps(record, ensure_ascii=False)
    (directory / f"{model.name}.json").write_text(text, encoding="utf-8")


def load_model(
    directory: str | Path,
    model_type: type[SequentialModel],
    item_ids: Sequence[str] | None = None,
) -> SavedModel:
    """Reads the files that `save_model` wrote.

    Args:
      directory: the directory that the model was saved in.
      model_type: class of the model, such as ``Sasrec``.
      item_ids: ids of the catalog that the model has to be of; None accepts any catalog.

    Raises:
      InputError: a file is missing or unreadable, or the model was fitted on another catalog. Item
        codes index its embeddings, so the ids must be equal and in the same order.
    """
    fields = ("config", "fit_range", "item_ids")
    record, arrays = read_saved(directory, model_type.name, fields)
    if item_ids is not None:
        path = Path(directory) / f"{model_type.name}.json"
        _check_catalog(path, saved=record["item_ids"], catalog=item_ids)
    model = model_type(model_type.config_type(**record["config"]), rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(model)
    flat = [
        (path, leaf.replace(jnp.asarray(arrays[_array_name(path)])))
        for path, leaf in nnx.to_flat_state(state)
    ]
    model = nnx.merge(graphdef, nnx.from_flat_state(flat))
    return SavedModel(model, tuple(record["item_ids"]), FitRange(**record["fit_range"]))


def read_saved(
    directory: str | Path, stem: str, fields: Sequence[str]
) -> tuple[dict, dict[str, np.ndarray]]:
    """Returns the record of ``stem.json`` and the arrays of ``stem.safetensors``.

    Raises:
      InputError: a file is missing or unreadable, or the record lacks one of ``fields``.
    """
    directory = Path(directory)
    for name in (f"{stem}.json", f"{stem}.safetensors"):
        if not (directory / name).is_file():
            raise InputError(f"{directory}: found no {name}, expected a saved {stem}")
    try:
        record = json.loads((directory / f"{stem}.json").read_text(encoding="utf-8"))
        arrays = load_file(directory / f"{stem}.safetensors")
    except (ValueError, SafetensorError) as error:
        raise InputError(f"{directory}: found an unreadable {stem} ({error})") from error
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
