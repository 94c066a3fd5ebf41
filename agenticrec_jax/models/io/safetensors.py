"""Safetensors weight files, written and read one tensor at a time.

The library's own writer takes the contents of a whole file at once, and a file that it holds open
keeps every page read so far in memory. Here a tensor is on the host only while it is written or
read. The format: eight bytes of header length, the header as JSON, the tensors end to end
(https://huggingface.co/docs/safetensors). Weights of a model are one weight file, or several shard
files and an index that names the file of each tensor.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from agenticrec_jax.errors import InputError, expect

_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


class Spec(NamedTuple):
    """Name, shape and dtype (by numpy's name) of a tensor that is not read yet."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """Size in a file."""
        return math.prod(self.shape) * (4 if self.dtype == "float32" else 2)


def write_weight_files(
    directory: Path,
    stem: str,
    specs: Sequence[Spec],
    values: Iterator[np.ndarray],
    max_file_bytes: int,
) -> None:
    """Writes ``<stem>.safetensors``, or shard files and their index where that is too large.

    Args:
      directory: an existing directory.
      stem: of the files' names, ``model`` or ``adapter_model``.
      specs: the tensors in the order of ``values``.
      values: the tensors, taken one at a time.
      max_file_bytes: of the tensors in a file; a larger tensor has a file to itself.

    Raises:
      InputError: ``max_file_bytes`` is not above 0.
    """
    files = split(specs, max_file_bytes)
    single = len(files) == 1
    weight_map = {}
    for i, file_specs in enumerate(files, 1):
        name = f"{stem}.safetensors" if single else f"{stem}-{i:05}-of-{len(files):05}.safetensors"
        _write_file(directory / name, file_specs, values)
        weight_map |= {spec.name: name for spec in file_specs}
    if not single:
        total = sum(spec.bytes for spec in specs)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (directory / f"{stem}.safetensors.index.json").write_text(text, encoding="utf-8")


def split(specs: Sequence[Spec], max_file_bytes: int) -> list[list[Spec]]:
    """Splits tensors into runs of at most ``max_file_bytes`` together, or of one larger tensor.

    Tensors of 3, 4, 9 and 2 bytes at 8 bytes a file are three files: (3, 4), (9) and (2).
    """
    expect(max_file_bytes > 0, "max_file_bytes", max_file_bytes, "a number above 0")
    files: list[list[Spec]] = [[]]
    free = max_file_bytes
    for spec in specs:
        if files[-1] and spec.bytes > free:
            files.append([])
            free = max_file_bytes
        files[-1].append(spec)
        free -= spec.bytes
    return files


def _write_file(path: Path, specs: Sequence[Spec], values: Iterator[np.ndarray]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    start = 0
    for spec in specs:
        header[spec.name] = {
            "dtype": _DTYPES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [start, start + spec.bytes],
        }
        start += spec.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors start at a multiple of 8
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        # Not strict: `values` goes on with the tensors of later files.
        for _, value in zip(specs, values, strict=False):
            file.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8))


class Reader:
    """Reads tensors by name from ``<stem>.safetensors``, or from the shard files of its index.

    Args:
      directory: of the weight files.
      stem: of their names, ``model`` or ``adapter_model``.
      config: the file that defines the tensors' shapes, for messages.

    Raises:
      InputError: there is neither a weight file nor an index.
    """

    def __init__(self, directory: Path, stem: str = "model", config: str = "config.json"):
        self._directory = directory
        self._config = config
        self._single_file = directory / f"{stem}.safetensors"
        self._index = directory / f"{stem}.safetensors.index.json"
        self._names: dict[Path, set[str]] = {}
        self._read: set[str] = set()
        self._weight_map = None if self._single_file.exists() else self._read_index()

    def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Reads one tensor.

        Raises:
          InputError: names file and tensor, if it is missing or has another shape.
        """
        path = self._single_file if self._weight_map is None else self._locate(name)
        # Opened for each tensor: an open file would keep every page that was read.
        with _opened(path, name) as file:
            names = self._names.setdefault(path, set(file.keys()))
            if name not in names:
                raise InputError(f"{path}: tensor {name} is missing")
            stored = tuple(file.get_slice(name).get_shape())
            expected = f"{shape} as {self._config} has it"
            expect(stored == shape, f"{path}: shape of tensor {name}", stored, expected)
            self._read.add(name)
            return file.get_tensor(name)

    def unread(self) -> Iterator[tuple[Path, str]]:
        """Yields file and name of every tensor that was not read, of the files that were opened."""
        for path, names in self._names.items():
            yield from ((path, name) for name in sorted(names - self._read))

    def _read_index(self) -> dict[str, str]:
        if not self._index.exists():
            raise InputError(
                f"{self._directory}: found no weights, expected {self._single_file.name} or "
                f"{self._index.name}"
            )
        weight_map = read_json(self._index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise InputError(f"{self._index}: field weight_map is missing")
        return weight_map

    def _locate(self, name: str) -> Path:
        if name not in self._weight_map:
            raise InputError(f"{self._index}: tensor {name} is missing")
        path = self._directory / self._weight_map[name]
        if not path.exists():
            raise InputError(f"{path} is missing; {self._index.name} names it for tensor {name}")
        return path


def _opened(path: Path, name: str):
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path}: tensor {name} cannot be read, not a readable safetensors file: {error}"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """Reads the JSON object in a file; InputError if there is none."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing; expected a Hugging Face model directory") from None
    except (ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from None
    expect(isinstance(raw, dict), str(path), type(raw).__name__, "a JSON object")
    return raw
