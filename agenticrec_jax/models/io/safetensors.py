"""Safetensors files written tensor by tensor, in shards of a size, and read the same way.

The library's own writer takes the content of a whole file at once, and a file that it holds open
keeps every page read so far in memory. Here a tensor is on the host while it is written or read and
no longer. The format: eight bytes of header length, the header as JSON, the tensors end to end
(https://huggingface.co/docs/safetensors).
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from agenticrec_jax.errors import InputError

_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


class Spec(NamedTuple):
    """What a tensor is before it is read: ``dtype`` by numpy's name."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """Its size in a file."""
        return math.prod(self.shape) * (4 if self.dtype == "float32" else 2)


def write_shards(
    directory: Path,
    stem: str,
    specs: Sequence[Spec],
    values: Iterator[np.ndarray],
    max_shard_bytes: int,
) -> None:
    """Writes ``<stem>.safetensors``, or if that is too large shards and their index.

    Args:
      directory: where; it must exist.
      stem: of the files' names, ``model`` or ``adapter_model``.
      specs: the tensors in the order of ``values``, which are taken one at a time.
      max_shard_bytes: of tensors in a file; a larger tensor has a file of its own.

    Raises:
      InputError: if ``max_shard_bytes`` is not above 0.
    """
    shards = split(specs, max_shard_bytes)
    single = len(shards) == 1
    weight_map = {}
    for i, shard in enumerate(shards, 1):
        name = f"{stem}.safetensors" if single else f"{stem}-{i:05}-of-{len(shards):05}.safetensors"
        _write_file(directory / name, shard, values)
        weight_map |= {spec.name: name for spec in shard}
    if not single:
        total = sum(spec.bytes for spec in specs)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (directory / f"{stem}.safetensors.index.json").write_text(text, encoding="utf-8")


def split(specs: Sequence[Spec], max_shard_bytes: int) -> list[list[Spec]]:
    """Runs of tensors of at most ``max_shard_bytes`` together, or of one larger tensor."""
    if max_shard_bytes <= 0:
        raise InputError(f"max_shard_bytes is {max_shard_bytes}, expected above 0")
    shards: list[list[Spec]] = [[]]
    room = max_shard_bytes
    for spec in specs:
        if shards[-1] and spec.bytes > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(spec)
        room -= spec.bytes
    return shards


def _write_file(path: Path, specs: Sequence[Spec], values: Iterator[np.ndarray]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    end = 0
    for spec in specs:
        start, end = end, end + spec.bytes
        place = {"shape": list(spec.shape), "data_offsets": [start, end]}
        header[spec.name] = {"dtype": _DTYPES[spec.dtype], **place}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, value in zip(specs, values, strict=False):  # later files take the other values
            file.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8))


class Reader:
    """Finds tensors by name in ``<stem>.safetensors`` or in the shards of its index.

    ``config`` is the file that says which tensors there should be, for messages.
    """

    def __init__(self, directory: Path, stem: str = "model", config: str = "config.json"):
        self._directory, self._config = directory, config
        self._weights = directory / f"{stem}.safetensors"
        self._index = directory / f"{stem}.safetensors.index.json"
        self._names: dict[Path, set[str]] = {}
        self._read: set[str] = set()
        self._map = None if self._weights.exists() else self._weight_map()

    def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """One tensor. InputError, naming file and tensor, if it is missing or of another shape."""
        path = self._weights if self._map is None else self._locate(name)
        with _opened(path, name) as file:
            names = self._names.setdefault(path, set(file.keys()))
            if name not in names:
                raise InputError(f"{path}: tensor {name} is missing")
            found = tuple(file.get_slice(name).get_shape())
            if found != shape:
                raise InputError(
                    f"{path}: tensor {name} has shape {found}; {self._config} asks for {shape}"
                )
            self._read.add(name)
            return file.get_tensor(name)

    def unread(self) -> Iterator[tuple[Path, str]]:
        """Tensors that nobody asked for, in the files that were opened."""
        for path, names in self._names.items():
            yield from ((path, name) for name in sorted(names - self._read))

    def _weight_map(self) -> dict[str, str]:
        if not self._index.exists():
            raise InputError(
                f"{self._directory}: neither {self._weights.name} nor {self._index.name} is there"
            )
        weight_map = read_json(self._index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise InputError(f"{self._index}: field weight_map is missing")
        return weight_map

    def _locate(self, name: str) -> Path:
        if name not in self._map:
            raise InputError(f"{self._index}: tensor {name} is missing")
        path = self._directory / self._map[name]
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
    """The JSON object in a file; InputError if there is none."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing; expected a Hugging Face model directory") from None
    except (ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path}: found {type(raw).__name__}, expected a JSON object")
    return raw
