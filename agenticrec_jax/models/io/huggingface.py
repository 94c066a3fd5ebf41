"""Hugging Face model directories: read straight into sharded place, written for transformers.

Layout: ``config.json`` and ``model.safetensors``, or shards with ``model.safetensors.index.json``.
"""

import collections
import contextlib
import functools
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from agenticrec_jax.errors import InputError
from agenticrec_jax.models.io.safetensors import Reader, Spec, read_json, write_shards
from agenticrec_jax.models.lora import BASE, adapters_by_path, merged
from agenticrec_jax.models.qwen3 import Qwen3, Qwen3Config, is_stacked, of_layer
from agenticrec_jax.parallel.mesh import RULES, Rules, place, tree_shardings
from agenticrec_jax.parallel.multihost import main_writes, to_host

MAX_SHARD_BYTES = 5_000_000_000
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
    *module, leaf = path
    stem = module_name(tuple(module))
    if leaf != "kernel":  # a norm's scale, or a bias by heads that is stored flat
        name = f"{stem}.{'bias' if leaf == 'bias' else 'weight'}"
        return _Entry(name, shape, (math.prod(shape),), False)
    inputs = 2 if module[-1] == "o" else 1
    hf_shape = (math.prod(shape[inputs:]), math.prod(shape[:inputs]))
    return _Entry(f"{stem}.weight", shape, hf_shape, True)


def module_name(path: tuple) -> str:
    """Hugging Face's name of a layer's module, such as (layers, 0, mlp, up)."""
    _, layer, *modules = path
    return ".".join(["model.layers", str(layer), *(_MODULES[m] for m in modules)])


def load_policy(
    directory: str | os.PathLike,
    *,
    mesh: Mesh | None = None,
    dtype: str | None = None,
    param_dtype: str | None = None,
    rules: Rules = RULES,
    scan_layers: bool = False,
    remat: str = "none",
    attention: str = "auto",
) -> Qwen3:
    """Reads a Hugging Face directory, one tensor at a time, each straight into its sharded place.

    Host memory never holds more than one tensor. ``dtype`` (say ``"float32"``) overrides the
    checkpoint's for weights and activations, ``param_dtype`` that for weights alone; without
    ``mesh`` the model is on the default device.
    ``scan_layers``, ``remat`` and ``attention`` are those of ``Qwen3Config``; with layers stacked
    each one's tensor is written into the parameter in place.

    Raises:
        InputError: names the file and the field or tensor that is missing or unfit.
    """
    directory = Path(directory)
    config = replace(
        read_config(directory).in_dtypes(dtype, param_dtype),
        scan_layers=scan_layers,
        remat=remat,
        attention=attention,
    )
    reader = Reader(directory)
    model = read_parameters(reader, config, mesh, rules)
    _check_all_read(reader)
    return model


class TensorReader(Protocol):
    """Gives tensors by Hugging Face's names: ``shards.Reader``, or another file format's."""

    def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """One tensor. InputError, naming file and tensor, if it is missing or of another shape."""


def read_parameters(
    reader: TensorReader, config: Qwen3Config, mesh: Mesh | None = None, rules: Rules = RULES
) -> Qwen3:
    """The model of ``config``, its parameters read one at a time, each into its sharded place."""
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0))))
    shardings = None if mesh is None else nnx.to_flat_state(tree_shardings(abstract, mesh, rules))
    placed = []
    for i, (path, variable) in enumerate(nnx.to_flat_state(abstract)):
        sharding = None if shardings is None else shardings[i][1].get_value()
        value = _read_parameter(reader, path, variable.get_value(), sharding)
        placed.append((path, variable.replace(value)))
    return nnx.merge(graphdef, nnx.from_flat_state(placed))


def _check_all_read(reader: Reader) -> None:
    """InputError if a tensor has no place in the model, which would then not be the same one.

    Allowed: a copy of the tied head, and rotary frequencies (they come from theta).
    """
    for path, name in reader.unread():
        if name != "lm_head.weight" and not name.endswith("rotary_emb.inv_freq"):
            raise InputError(f"{path}: tensor {name} has no place in config.json's model")


def _read_parameter(
    reader: TensorReader, path: tuple, like: jax.ShapeDtypeStruct, sharding: NamedSharding | None
) -> jax.Array:
    """The parameter in its place; a stacked one is written there layer by layer."""

    def read(path: tuple, shape: tuple[int, ...], sharding: NamedSharding | None) -> jax.Array:
        entry = _entry(path, shape)
        value = entry.from_hf(reader.read(entry.name, entry.hf_shape))
        value = value.astype(like.dtype, copy=False)
        return jnp.asarray(value) if sharding is None else place(value, sharding)

    if not is_stacked(path):
        return read(path, like.shape, sharding)
    one = sharding and NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    zeros = jax.jit(lambda: jnp.zeros(like.shape, like.dtype), out_shardings=sharding)
    update = jax.jit(lambda x, y, i: x.at[i].set(y), donate_argnums=0, out_shardings=sharding)
    stack = zeros()
    for i in range(like.shape[0]):
        stack = update(stack, read(of_layer(path, i), like.shape[1:], one), i)
    return stack


def read_config(directory: str | os.PathLike) -> Qwen3Config:
    """The ``config.json`` of a model directory.

    Raises:
        InputError: if the file is missing, is not JSON, or describes another kind of model.
    """
    path = Path(directory) / "config.json"
    raw = read_json(path)
    return Qwen3Config.from_hf(raw, str(path))


def save_policy(
    model: Qwen3,
    directory: str | os.PathLike,
    *,
    generation: dict[str, Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes a directory that transformers loads with the same logits.

    Weights keep the model's ``param_dtype`` (bfloat16 stays bfloat16 on disk); LoRA adapters are
    merged into them. One tensor at a time is copied to the host. ``generation`` is the content of
    ``generation_config.json``, say ``{"eos_token_id": 2}``. Files are written aside and renamed, so
    a killed save never leaves a directory that half loads; other files in it (a tokenizer) stay. On
    several processes every one calls this and process 0 writes.

    Raises:
        InputError: if no Hugging Face architecture has such a model, ``directory`` is a file, or
            ``max_shard_bytes`` is not above 0.
    """
    directory = Path(directory).absolute()
    config = model.config.to_hf()
    specs, values = _tensors(model)
    with main_writes(f"save_policy {directory}") as writes:
        try:
            if writes:
                with staged(directory, _is_model_file) as stage:
                    write_shards(stage, "model", specs, values, max_shard_bytes)
                    write_json(stage / "generation_config.json", generation or {})
                    write_json(stage / "config.json", config)
        finally:  # gathering a tensor takes every process, also after a failed write
            collections.deque(values, maxlen=0)


def _tensors(model: Qwen3) -> tuple[list[Spec], Iterator[np.ndarray]]:
    """What there is to save, by name, and the tensors on the host, each made when asked for."""
    found = [(_entry(path, shape), make) for path, shape, make in _by_layer(model)]
    found.sort(key=lambda one: one[0].name)
    dtype = model.config.param_dtype
    specs = [Spec(entry.name, entry.hf_shape, dtype) for entry, _ in found]
    return specs, (entry.to_hf(to_host(make())) for entry, make in found)


def _by_layer(model: Qwen3) -> Iterator[tuple[tuple, tuple[int, ...], Callable[[], jax.Array]]]:
    """Path, shape and maker of every parameter, layers one by one even where they are stacked."""
    adapters = adapters_by_path(model)
    for path, variable in nnx.to_flat_state(nnx.state(model, BASE)):
        adapter = adapters.get(path[:-1]) if path[-1] == "kernel" else None
        value = functools.partial(merged, variable.get_value(), adapter)
        shape = variable.get_value().shape
        if is_stacked(path):
            for i in range(shape[0]):
                yield of_layer(path, i), shape[1:], functools.partial(value, i)
        else:
            yield path, shape, value


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextlib.contextmanager
def staged(directory: Path, is_stale: Callable[[str], bool]) -> Iterator[Path]:
    """A scratch directory beside ``directory``, which takes its place on success.

    If ``directory`` is there already the files are renamed into it one by one: files whose name
    ``is_stale`` go first, the config before the weights, and the new config comes last, so that at
    no moment old and new mix in a loadable model.
    """
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory} is a file; expected a directory to save the model in")
    stage = directory.parent / f".{directory.name}.saving-{os.getpid()}"
    stage.mkdir(parents=True, exist_ok=True)
    try:
        yield stage
        if directory.exists():
            _replace_files(stage, directory, is_stale)
        else:
            os.rename(stage, directory)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _is_model_file(name: str) -> bool:
    return re.fullmatch(r"config\.json|model(-.*)?\.safetensors(\.index\.json)?", name) is not None


def _replace_files(stage: Path, directory: Path, is_stale: Callable[[str], bool]) -> None:
    stale = [file for file in directory.iterdir() if is_stale(file.name)]
    for file in sorted(stale, key=_is_config, reverse=True):
        file.unlink()
    for file in sorted(stage.iterdir(), key=_is_config):
        os.replace(file, directory / file.name)


def _is_config(file: Path) -> bool:
    return file.name in ("config.json", "adapter_config.json")
