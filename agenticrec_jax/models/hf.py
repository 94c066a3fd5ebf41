"""Hugging Face model directories: read straight into sharded place, written for transformers.

Layout: ``config.json`` and ``model.safetensors``, or shards with ``model.safetensors.index.json``.
"""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from agenticrec_jax.errors import InputError
from agenticrec_jax.models.qwen3 import Qwen3, Qwen3Config
from agenticrec_jax.parallel.mesh import RULES, Rules, place, tree_shardings
from agenticrec_jax.parallel.multihost import main_writes, to_host

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_MODULES = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "attention": "self_attn",
    "mlp": "mlp",
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "o": "o_proj",
    "gate": "gate_proj",
    "up": "up_proj",
    "down": "down_proj",
    "q_norm": "q_norm",
    "k_norm": "k_norm",
}


@dataclass(frozen=True)
class _Entry:
    """One parameter and its Hugging Face tensor; kernels are stored there as [outputs, inputs]."""

    name: str
    shape: tuple[int, ...]
    hf_shape: tuple[int, ...]
    transposed: bool

    def from_hf(self, tensor: np.ndarray) -> np.ndarray:
        return (tensor.T if self.transposed else tensor).reshape(self.shape)

    def to_hf(self, value: np.ndarray) -> np.ndarray:
        if self.transposed:
            return np.ascontiguousarray(value.reshape(self.hf_shape[::-1]).T)
        return np.ascontiguousarray(value.reshape(self.hf_shape))


def _entry(path: tuple, shape: tuple[int, ...]) -> _Entry:
    """The entry of an NNX path such as (layers, 0, mlp, up, kernel)."""
    if path == ("embedding",):
        return _Entry("model.embed_tokens.weight", shape, shape, False)
    if path == ("norm", "scale"):
        return _Entry("model.norm.weight", shape, shape, False)
    if path == ("head", "kernel"):
        return _Entry("lm_head.weight", shape, shape[::-1], True)
    _, layer, *modules, leaf = path
    stem = ".".join(["model.layers", str(layer), *(_MODULES[m] for m in modules)])
    if leaf != "kernel":  # a norm's scale, or a bias by heads that is stored flat
        name = f"{stem}.{'bias' if leaf == 'bias' else 'weight'}"
        return _Entry(name, shape, (math.prod(shape),), False)
    inputs = 2 if modules[-1] == "o" else 1
    hf_shape = (math.prod(shape[inputs:]), math.prod(shape[:inputs]))
    return _Entry(f"{stem}.weight", shape, hf_shape, True)


def load_policy(
    directory: str | os.PathLike,
    *,
    mesh: Mesh | None = None,
    dtype: str | None = None,
    rules: Rules = RULES,
    scan_layers: bool = False,
) -> Qwen3:
    """Reads a Hugging Face directory, one tensor at a time, each straight into its sharded place.

    Host memory never holds more than one tensor. ``dtype`` (say ``"float32"``) overrides the
    checkpoint's for weights and activations; without ``mesh`` the model is on the default device.
    ``scan_layers`` as in ``Qwen3Config``: each layer's tensor goes into the stacked parameter in
    place.

    Raises:
        InputError: names the file and the field or tensor that is missing or unfit.
    """
    directory = Path(directory)
    config = replace(read_config(directory), scan_layers=scan_layers)
    if dtype is not None:
        config = replace(config, param_dtype=dtype, dtype=dtype)
    model = nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0)))
    graphdef, abstract = nnx.split(model)
    shardings = None if mesh is None else nnx.to_flat_state(tree_shardings(abstract, mesh, rules))
    placed = []
    with _Reader(directory) as reader:
        for i, (path, variable) in enumerate(nnx.to_flat_state(abstract)):
            sharding = None if shardings is None else shardings[i][1].get_value()
            value = _read_parameter(reader, path, variable.get_value(), sharding)
            placed.append((path, variable.replace(value)))
        reader.check_all_read()
    return nnx.merge(graphdef, nnx.from_flat_state(placed))


def _read_parameter(
    reader: "_Reader", path: tuple, like: jax.ShapeDtypeStruct, sharding: NamedSharding | None
) -> jax.Array:
    """The parameter in its place; a stacked one is written there layer by layer."""

    def read(path: tuple, shape: tuple[int, ...], sharding: NamedSharding | None) -> jax.Array:
        value = reader.read(_entry(path, shape)).astype(like.dtype)
        return jnp.asarray(value) if sharding is None else place(value, sharding)

    if not _is_stacked(path):
        return read(path, like.shape, sharding)
    one = sharding and NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    zeros = jax.jit(lambda: jnp.zeros(like.shape, like.dtype), out_shardings=sharding)
    update = jax.jit(lambda x, y, i: x.at[i].set(y), donate_argnums=0, out_shardings=sharding)
    stack = zeros()
    for i in range(like.shape[0]):
        stack = update(stack, read(_of_layer(path, i), like.shape[1:], one), i)
    return stack


def _is_stacked(path: tuple) -> bool:
    """Whether the parameter holds all layers: (layers, mlp, ..) and not (layers, 0, mlp, ..)."""
    return path[0] == "layers" and not isinstance(path[1], int)


def _of_layer(path: tuple, i: int) -> tuple:
    return (path[0], i, *path[1:])


def read_config(directory: str | os.PathLike) -> Qwen3Config:
    """The ``config.json`` of a model directory.

    Raises:
        InputError: if the file is missing, is not JSON, or describes another kind of model.
    """
    path = Path(directory) / "config.json"
    raw = _read_json(path)
    return Qwen3Config.from_hf(raw, str(path))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing; expected a Hugging Face model directory") from None
    except (ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path}: found {type(raw).__name__}, expected a JSON object")
    return raw


class _Reader:
    """Finds tensors by name in one file or in shards, keeping each opened file open."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._open: dict[Path, Any] = {}
        self._index = directory / _INDEX
        self._read: set[str] = set()
        self._map: dict[str, str] | None = None
        if not (directory / _WEIGHTS).exists():
            self._map = self._weight_map()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for file in self._open.values():
            file.__exit__(None, None, None)

    def read(self, entry: _Entry) -> np.ndarray:
        """The parameter in our layout; InputError if it is missing or has another shape."""
        path = self._locate(entry.name)
        file = self._file(path)
        if entry.name not in set(file.keys()):
            raise InputError(f"{path}: tensor {entry.name} is missing")
        found = tuple(file.get_slice(entry.name).get_shape())
        if found != entry.hf_shape:
            raise InputError(
                f"{path}: tensor {entry.name} has shape {found}; "
                f"config.json asks for {entry.hf_shape}"
            )
        self._read.add(entry.name)
        return entry.from_hf(file.get_tensor(entry.name))

    def check_all_read(self) -> None:
        """InputError if a tensor has no place in the model, which would then not be the same one.

        Allowed: a copy of the tied head, and rotary frequencies (they come from theta).
        """
        for path, file in self._open.items():
            for name in sorted(set(file.keys()) - self._read):
                if name != "lm_head.weight" and not name.endswith("rotary_emb.inv_freq"):
                    raise InputError(f"{path}: tensor {name} has no place in config.json's model")

    def _weight_map(self) -> dict[str, str]:
        if not self._index.exists():
            raise InputError(f"{self._directory}: neither {_WEIGHTS} nor {_INDEX} is there")
        weight_map = _read_json(self._index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise InputError(f"{self._index}: field weight_map is missing")
        return weight_map

    def _locate(self, name: str) -> Path:
        if self._map is None:
            return self._directory / _WEIGHTS
        if name not in self._map:
            raise InputError(f"{self._index}: tensor {name} is missing")
        return self._directory / self._map[name]

    def _file(self, path: Path):
        if path not in self._open:
            try:
                self._open[path] = safe_open(path, framework="np").__enter__()
            except FileNotFoundError:
                raise InputError(f"{path} is missing; {self._index.name} names it") from None
            except (SafetensorError, OSError) as error:
                raise InputError(f"{path} is not a readable safetensors file: {error}") from None
        return self._open[path]


def save_policy(
    model: Qwen3, directory: str | os.PathLike, *, generation: dict[str, Any] | None = None
) -> None:
    """Writes a directory that transformers loads with the same logits.

    Weights keep the model's ``param_dtype`` (bfloat16 stays bfloat16 on disk). ``generation`` is
    the content of ``generation_config.json``, say ``{"eos_token_id": 2}``. Files are written aside
    and renamed, so a killed save never leaves a directory that half loads; other files in it (a
    tokenizer) stay. On several processes every one calls this and process 0 writes.

    Raises:
        InputError: if no Hugging Face architecture has such a model, or ``directory`` is a file.
    """
    directory = Path(directory).absolute()
    config = model.config.to_hf()
    tensors = _tensors(model)
    with main_writes(f"save_policy {directory}") as writes:
        if writes:
            with _staged(directory) as stage:
                save_file(tensors, stage / _WEIGHTS, metadata={"format": "pt"})
                _write_json(stage / "generation_config.json", generation or {})
                _write_json(stage / "config.json", config)
                shutil.copymode(stage / "config.json", stage / _WEIGHTS)


def _tensors(model: Qwen3) -> dict[str, np.ndarray]:
    entries = ((_entry(path, value.shape), value) for path, value in _by_layer(model))
    return {entry.name: entry.to_hf(to_host(value)) for entry, value in entries}


def _by_layer(model: Qwen3) -> Iterator[tuple[tuple, jax.Array]]:
    """Every parameter and its path, with layers one by one even where they are stacked."""
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        value = variable.get_value()
        if _is_stacked(path):
            yield from ((_of_layer(path, i), value[i]) for i in range(value.shape[0]))
        else:
            yield path, value


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _staged(directory: Path) -> Iterator[Path]:
    """A scratch directory beside ``directory``, which takes its place on success.

    If ``directory`` is there already the files are renamed into it one by one: the old config goes
    first and the new one comes last, so that at no moment old and new mix in a loadable model.
    """
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory} is a file; expected a directory to save the model in")
    stage = directory.parent / f".{directory.name}.saving-{os.getpid()}"
    stage.mkdir(parents=True, exist_ok=True)
    try:
        yield stage
        if directory.exists():
            _replace_files(stage, directory)
        else:
            os.rename(stage, directory)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _replace_files(stage: Path, directory: Path) -> None:
    for stale in ("config.json", _INDEX):
        (directory / stale).unlink(missing_ok=True)
    for file in sorted(stage.iterdir(), key=lambda file: file.name == "config.json"):
        os.replace(file, directory / file.name)
