"""Safetensors weight files, written and read one tensor at a time.

The library's own writer takes the contents of a whole file at once, and a file that it holds open
keeps every page read so far in memory. Here a tensor is on the host only while it is written or
read. The format: eight bytes of header length, the header as JSON, the tensors end to end
(https://huggingface.co/docs/safetensors). Weights of a model are one weight file, or several shard
files and an index that names the file of each tensor.
"""

import contextlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from agenticrec_jax import strict_json
from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.paths import Path, glob, is_bucket, read_range, require_file

_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_WEIGHTS = ("F64", "F32", "BF16", "F16")
_NUMPY = {"F64": "float64"} | {name: dtype for dtype, name in _DTYPES.items()}
_ROWS = 4096  # compared at once
_CHECKED = 2**20  # numbers that are checked at once
_DAMAGED = (ValueError, TypeError, KeyError, AttributeError, RecursionError)  # of a header
_PIECE_BYTES = 32 * 2**20  # of a tensor in a bucket that are read at once


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
        text = strict_json.dumps(index, indent=2, sort_keys=True) + "\n"
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
    text = strict_json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors start at a multiple of 8
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        # Not strict: `values` goes on with the tensors of later files.
        for _, value in zip(specs, values, strict=False):
            file.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8))


class _BucketTensor(NamedTuple):
    """A tensor in a bucket, whose rows are read when they are asked for."""

    path: Path
    start: int  # of its bytes in the file
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size in the file."""
        return math.prod(self.shape) * jnp.dtype(_NUMPY[self.dtype]).itemsize

    def get_shape(self) -> tuple[int, ...]:
        return self.shape

    def get_dtype(self) -> str:
        return self.dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        first, last, _ = rows.indices(self.shape[0])
        return self._read(first, (last - first, *self.shape[1:]))

    def whole(self) -> np.ndarray:
        """Returns all rows."""
        return self._read(0, self.shape)

    def _read(self, first: int, shape: tuple[int, ...]) -> np.ndarray:
        dtype = jnp.dtype(_NUMPY[self.dtype])
        start = self.start + first * math.prod(self.shape[1:]) * dtype.itemsize
        data = np.empty(math.prod(shape) * dtype.itemsize, np.uint8)
        for at in range(0, len(data), _PIECE_BYTES):  # so that memory has no second copy
            end = min(at + _PIECE_BYTES, len(data))
            data[at:end] = np.frombuffer(read_range(self.path, start + at, start + end), np.uint8)
        return data.view(dtype).reshape(shape)


class _BucketFile:
    """A safetensors file in a bucket, with the methods of ``safe_open`` that are used here.

    The library maps a file into memory, which takes a disk.

    Raises:
      errors of ``_DAMAGED``: the header is damaged, or the file too short for it.
    """

    def __init__(self, path: Path):
        length = int.from_bytes(read_range(path, 0, 8), "little")
        size = path.stat().length
        if not 0 < length <= size - 8:
            raise ValueError(f"found a header of {length} bytes in a file of {size}")
        header = json.loads(read_range(path, 8, 8 + length))
        header.pop("__metadata__", None)
        self._tensors = {}
        for name, entry in header.items():
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            tensor = _BucketTensor(path, start, entry["dtype"], tuple(entry["shape"]))
            if end > size:
                raise ValueError(f"found a file of {size} bytes, expected {end} for tensor {name}")
            if tensor.dtype in _NUMPY and tensor.bytes != end - start:
                raise ValueError(f"found {end - start} bytes of tensor {name}, not {tensor.bytes}")
            self._tensors[name] = tensor

    def keys(self) -> list[str]:
        return list(self._tensors)

    def get_slice(self, name: str) -> _BucketTensor:
        return self._tensors[name]

    def get_tensor(self, name: str) -> np.ndarray:
        return self._tensors[name].whole()


def is_finite(tensor: np.ndarray) -> bool:
    """Whether all numbers are finite: those that are not have every bit of infinity's exponent.

    NumPy's own check is slow for bfloat16 and float16.
    """
    exponent = np.array(np.inf, tensor.dtype).view(f"u{tensor.itemsize}")
    bits = tensor.reshape(-1).view(exponent.dtype)
    pieces = (bits[i : i + _CHECKED] for i in range(0, len(bits), _CHECKED))
    return not any((piece & exponent == exponent).any() for piece in pieces)


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
        self._shard_name = re.compile(re.escape(stem) + r"-\d+-of-\d+\.safetensors")
        self._names: dict[Path, set[str]] = {}
        self._read: set[tuple[Path, str]] = set()
        self._bucket_files: dict[Path, _BucketFile] = {}
        self._weight_map = None if self._single_file.exists() else self._read_index()

    def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Reads one tensor.

        Raises:
          InputError: names file and tensor, if it is missing, has another shape or a dtype that
            weights do not have, or holds a NaN or an infinity.
        """
        path = self._locate(name)
        # Opened for each tensor: an open file would keep every page that was read.
        with self._opened(path, name) as file:
            self._check(path, file, name, shape)
            self._read.add((path, name))
            tensor = file.get_tensor(name)
        if not is_finite(tensor):
            raise InputError(
                f"{path}: found a NaN or an infinity in tensor {name}, expected finite numbers"
            )
        return tensor

    def expect(self, name: str, shape: tuple[int, ...]) -> None:
        """Checks name, shape and dtype of a tensor without reading it; InputError as in `read`."""
        path = self._locate(name)
        with self._opened(path, name) as file:
            self._check(path, file, name, shape)

    def equal(self, name: str, other: str) -> bool:
        """Whether two tensors have the same values, compared a block of rows at a time."""
        with self._opened(self._locate(name)) as file, self._opened(self._locate(other)) as others:
            a = file.get_slice(name)
            b = others.get_slice(other)
            if a.get_shape() != b.get_shape() or a.get_dtype() != b.get_dtype():
                return False
            rows = a.get_shape()[0]
            blocks = (slice(i, min(i + _ROWS, rows)) for i in range(0, rows, _ROWS))
            return all(np.array_equal(a[block], b[block]) for block in blocks)

    def unread(self) -> Iterator[tuple[Path, str]]:
        """Yields file and name of every tensor that was not read, of every file of the weights.

        These are the files that the index names, and shard files beside them that it does not name.
        """
        for path in self._files():
            yield from (
                (path, n) for n in sorted(self._names_of(path)) if (path, n) not in self._read
            )

    def _check(self, path: Path, file, name: str, shape: tuple[int, ...]) -> None:
        names = self._names.setdefault(path, set(file.keys()))
        if name not in names:
            raise InputError(f"{path}: tensor {name} is missing")
        stored = file.get_slice(name)
        stored_shape = tuple(stored.get_shape())
        expected = f"{shape} as {self._config} has it"
        expect(stored_shape == shape, f"{path}: shape of tensor {name}", stored_shape, expected)
        dtype = stored.get_dtype()
        known = f"one of {', '.join(_WEIGHTS)}, as weights have"
        expect(dtype in _WEIGHTS, f"{path}: dtype of tensor {name}", dtype, known)

    def _files(self) -> list[Path]:
        if self._weight_map is None:
            return [self._single_file]
        named = {self._directory / name for name in self._weight_map.values()}
        beside = {
            path for path in glob(self._directory, "*") if self._shard_name.fullmatch(path.name)
        }
        return sorted(named | beside)

    def _names_of(self, path: Path) -> set[str]:
        if path not in self._names:
            with self._opened(path) as file:
                self._names[path] = set(file.keys())
        return self._names[path]

    def _read_index(self) -> dict[str, str]:
        if not self._index.exists():
            raise InputError(
                f"{self._directory}: found no weights, expected {self._single_file.name} or "
                f"{self._index.name}"
            )
        weight_map = read_json(self._index).get("weight_map")
        where = f"{self._index}: weight_map"
        expect(isinstance(weight_map, dict), where, weight_map, "a file for each tensor")
        for name, file in weight_map.items():
            is_name = isinstance(file, str) and re.fullmatch(r"[\w.-]+\.safetensors", file)
            expected = "the name of a safetensors file beside it"
            expect(bool(is_name), f"{where}: tensor {name}", file, expected)
        return weight_map

    def _opened(self, path: Path, name: str = "") -> Any:
        """Opens a file of the directory; InputError if it is not a whole safetensors file."""
        tensor = f"tensor {name}" if name else "tensors"
        try:
            if not is_bucket(path):
                return safe_open(path, framework="np")
            if path not in self._bucket_files:
                self._bucket_files[path] = _BucketFile(path)
            return contextlib.nullcontext(self._bucket_files[path])
        except (SafetensorError, OSError, *_DAMAGED) as error:
            raise InputError(
                f"{path}: {tensor} cannot be read, not a readable safetensors file: {error}"
            ) from None

    def _locate(self, name: str) -> Path:
        if self._weight_map is None:
            return self._single_file
        if name not in self._weight_map:
            raise InputError(f"{self._index}: tensor {name} is missing")
        path = self._directory / self._weight_map[name]
        if path not in self._names and not path.exists():
            raise InputError(f"{path} is missing; {self._index.name} names it for tensor {name}")
        return path


def read_json(path: Path) -> dict[str, Any]:
    """Reads the JSON object in a file; InputError if there is none."""
    require_file(path, f"{path.name} of a Hugging Face model directory")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from None
    expect(isinstance(raw, dict), str(path), type(raw).__name__, "a JSON object")
    return raw
