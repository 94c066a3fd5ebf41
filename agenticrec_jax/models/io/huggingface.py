"""Hugging Face model directories: read straight onto a mesh, written for transformers.

A directory has ``config.json`` and one weight file ``model.safetensors``, or shard files with the
index ``model.safetensors.index.json``.
"""

import collections
import contextlib
import functools
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from agenticrec_jax import strict_json
from agenticrec_jax.errors import InputError
from agenticrec_jax.models.io.safetensors import (
    Reader,
    Spec,
    is_finite,
    read_json,
    write_weight_files,
)
from agenticrec_jax.models.lora import BASE, adapters_by_path, merged
from agenticrec_jax.models.qwen3 import Qwen3, Qwen3Config, is_stacked, of_layer
from agenticrec_jax.parallel.mesh import RULES, Rules, put_sharded, tree_shardings
from agenticrec_jax.parallel.multihost import main_writes, to_host
from agenticrec_jax.paths import Path, absolute, glob, is_bucket, move

MAX_FILE_BYTES = 5_000_000_000
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
    """One parameter and its Hugging Face tensor.

    Kernels are [inputs.., outputs..] here, with an axis for heads, and [outputs, inputs] there: the
    kernel of q of shape (D, N, H) is a tensor of shape (N * H, D).

    Attributes:
      name: of the tensor.
      shape: of the parameter.
      hf_shape: of the tensor.
      transposed: whether the tensor is [outputs, inputs].
    """

    name: str
    shape: tuple[int, ...]
    hf_shape: tuple[int, ...]
    transposed: bool

    def from_hf(self, tensor: np.ndarray) -> np.ndarray:
        """Returns the parameter's value from its tensor."""
        return (tensor.T if self.transposed else tensor).reshape(self.shape)

    def to_hf(self, value: np.ndarray) -> np.ndarray:
        """Returns the tensor from the parameter's value."""
        if self.transposed:
            return np.ascontiguousarray(value.reshape(self.hf_shape[::-1]).T)
        return np.ascontiguousarray(value.reshape(self.hf_shape))


def _entry(path: tuple, shape: tuple[int, ...]) -> _Entry:
    """Returns the entry of an NNX path such as (layers, 0, mlp, up, kernel)."""
    if path == ("embedding",):
        return _Entry("model.embed_tokens.weight", shape, shape, False)
    if path == ("norm", "scale"):
        return _Entry("model.norm.weight", shape, shape, False)
    if path == ("head", "kernel"):
        return _Entry("lm_head.weight", shape, shape[::-1], True)
    *module, leaf = path
    stem = module_name(tuple(module))
    if leaf != "kernel":  # a norm's scale, or a bias [N, H] that is stored flat
        name = f"{stem}.{'bias' if leaf == 'bias' else 'weight'}"
        return _Entry(name, shape, (math.prod(shape),), False)
    inputs = 2 if module[-1] == "o" else 1
    hf_shape = (math.prod(shape[inputs:]), math.prod(shape[:inputs]))
    return _Entry(f"{stem}.weight", shape, hf_shape, True)


def module_name(path: tuple) -> str:
    """Returns Hugging Face's name of a layer's module.

    (layers, 0, mlp, up) is ``model.layers.0.mlp.up_proj``.
    """
    _, layer, *modules = path
    return ".".join(["model.layers", str(layer), *(_MODULES[m] for m in modules)])


def load_policy(
    directory: str | os.PathLike,
    *,
    mesh: Mesh | None = None,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike | None = None,
    rules: Rules = RULES,
    scan_layers: bool = False,
    remat: str = "none",
    attention: str = "auto",
) -> Qwen3:
    """Loads a policy from a Hugging Face directory of the Qwen3, Qwen2 or Llama family.

    Tensors are read one at a time, each straight onto its devices. Host memory never holds more
    than one tensor.

    >>> import jax.numpy as jnp
    >>> policy = load_policy("tools_data/tiny_policy", dtype=jnp.float32)
    >>> policy.config.num_layers, policy.config.dtype
    (6, 'float32')
    >>> ids = jnp.array([[5, 6, 7, 8]])
    >>> policy(ids).shape == (1, 4, policy.config.vocab_size)
    True

    Args:
      directory: has ``config.json`` and weight files.
      mesh: devices that the parameters are sharded over; None for the default device.
      dtype: of weights and activations, such as ``jnp.bfloat16``; None for the checkpoint's.
      param_dtype: of weights alone.
      rules: logical axis to mesh axis, see ``parallel.mesh``.
      scan_layers: as in ``Qwen3Config``; each layer's tensor is written into the stack in place.
      remat: as in ``Qwen3Config``.
      attention: as in ``Qwen3Config``.

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
    # First what is the last in a model: one of too many layers would be built before it is refused.
    last = f"model.layers.{config.num_layers - 1}"
    reader.expect(f"{last}.input_layernorm.weight", (config.hidden_size,))
    reader.expect("model.embed_tokens.weight", (config.vocab_size, config.hidden_size))
    model = read_parameters(reader, config, mesh, rules)
    _check_all_read(reader, tied=config.tie_word_embeddings)
    return model


class TensorReader(Protocol):
    """Interface of a file format that has tensors by Hugging Face's names."""

    def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Reads one tensor; InputError, naming file and tensor, if it is missing or unfit."""


def read_parameters(
    reader: TensorReader, config: Qwen3Config, mesh: Mesh | None = None, rules: Rules = RULES
) -> Qwen3:
    """Reads the model of ``config``, one parameter at a time, each straight onto its devices."""
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0))))
    shardings = None if mesh is None else nnx.to_flat_state(tree_shardings(abstract, mesh, rules))
    placed = []
    for i, (path, variable) in enumerate(nnx.to_flat_state(abstract)):
        sharding = None if shardings is None else shardings[i][1].get_value()
        value = _read_parameter(reader, path, variable.get_value(), sharding)
        placed.append((path, variable.replace(value)))
    return nnx.merge(graphdef, nnx.from_flat_state(placed))


def _check_all_read(reader: Reader, *, tied: bool) -> None:
    """Checks that the model has a parameter for every tensor: otherwise it is another model.

    Two are allowed: a head that equals the embedding that it is tied to, and rotary frequencies,
    which come from theta.
    """
    for path, name in reader.unread():
        if name.endswith("rotary_emb.inv_freq"):
            continue
        if tied and name == "lm_head.weight":
            if reader.equal(name, "model.embed_tokens.weight"):
                continue
            raise InputError(
                f"{path}: found tensor {name} that differs from model.embed_tokens.weight, "
                "expected the same, since tie_word_embeddings of config.json is true"
            )
        raise InputError(f"{path}: found tensor {name}, expected only those of config.json's model")


def _read_parameter(
    reader: TensorReader, path: tuple, like: jax.ShapeDtypeStruct, sharding: NamedSharding | None
) -> jax.Array:
    """Reads a parameter onto its devices; a stacked one is written there layer by layer."""

    def read(path: tuple, shape: tuple[int, ...], sharding: NamedSharding | None) -> jax.Array:
        entry = _entry(path, shape)
        value = entry.from_hf(reader.read(entry.name, entry.hf_shape))
        narrows = jnp.finfo(like.dtype).max < jnp.finfo(value.dtype).max
        with np.errstate(over="ignore"):  # refused below
            value = value.astype(like.dtype, copy=False)
        if narrows and not is_finite(value):
            raise InputError(
                f"tensor {entry.name}: found a number that {np.dtype(like.dtype).name} cannot "
                "hold, expected a wider dtype of the policy"
            )
        return jnp.asarray(value) if sharding is None else put_sharded(value, sharding)

    if not is_stacked(path):
        return read(path, like.shape, sharding)
    layer_sharding = sharding and NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    zeros = jax.jit(lambda: jnp.zeros(like.shape, like.dtype), out_shardings=sharding)
    # Donated, so that the stack is updated in place and memory has no second one.
    update = jax.jit(lambda x, y, i: x.at[i].set(y), donate_argnums=0, out_shardings=sharding)
    stack = zeros()
    for i in range(like.shape[0]):
        stack = update(stack, read(of_layer(path, i), like.shape[1:], layer_sharding), i)
    return stack


def read_config(directory: str | os.PathLike) -> Qwen3Config:
    """Reads the ``config.json`` of a model directory.

    Raises:
      InputError: the file is missing, is not JSON, or describes another kind of model.
    """
    path = Path(directory) / "config.json"
    raw = read_json(path)
    return Qwen3Config.from_hf(raw, str(path))


def save_policy(
    model: Qwen3,
    directory: str | os.PathLike,
    *,
    generation: dict[str, Any] | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Writes a directory that transformers loads with the same logits.

    Weights keep the model's ``param_dtype``: bfloat16 stays bfloat16 on disk. LoRA adapters are
    merged into them. One tensor at a time is copied to the host. Files are written aside and
    renamed, so that a killed save leaves no directory that loads as a mixture. Other files in the
    directory (a tokenizer) stay. With several processes all of them call this and process 0 writes.

    Args:
      model: the policy.
      directory: to write; it may exist.
      generation: content of ``generation_config.json``, such as ``{"eos_token_id": 2}``.
      max_file_bytes: of the tensors in a weight file; more is split into shard files.

    Raises:
      InputError: no Hugging Face architecture has such a model, ``directory`` is a file, or
        ``max_file_bytes`` is not above 0.
    """
    directory = absolute(directory)
    config = model.config.to_hf()
    specs, values = _tensors(model)
    with main_writes(f"save_policy {directory}") as writes:
        try:
            if writes:
                with staged(directory, _is_model_file) as stage:
                    write_weight_files(stage, "model", specs, values, max_file_bytes)
                    write_json(stage / "generation_config.json", generation or {})
                    write_json(stage / "config.json", config)
        finally:
            # Gathering a tensor takes all processes. So the others, and process 0 after a failed
            # write, go through the remaining tensors too.
            collections.deque(values, maxlen=0)


def _tensors(model: Qwen3) -> tuple[list[Spec], Iterator[np.ndarray]]:
    """Returns all tensors' specs, sorted by name, and an iterator that makes each on demand."""
    entries = [(_entry(path, shape), make) for path, shape, make in _by_layer(model)]
    entries.sort(key=lambda entry_and_make: entry_and_make[0].name)
    dtype = model.config.param_dtype
    specs = [Spec(entry.name, entry.hf_shape, dtype) for entry, _ in entries]
    return specs, (entry.to_hf(to_host(make())) for entry, make in entries)


def _by_layer(model: Qwen3) -> Iterator[tuple[tuple, tuple[int, ...], Callable[[], jax.Array]]]:
    """Yields path, shape and maker of every parameter, one by one of stacked layers too."""
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
    """Writes a JSON object with sorted keys."""
    path.write_text(strict_json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextlib.contextmanager
def staged(directory: Path, is_stale: Callable[[str], bool]) -> Iterator[Path]:
    """Yields a scratch directory on this machine, which takes ``directory``'s place on success.

    It lies beside ``directory``; for one in a bucket, where temporary files do. If ``directory``
    exists, or is in a bucket, the files are moved into it one by one. Files whose name ``is_stale``
    are removed first, the config before the weights, and the new config comes last. So at no moment
    does the directory load as a mixture of old and new.

    Raises:
      InputError: ``directory`` is a file.
    """
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory}: found a file, expected a directory to save the model in")
    if is_bucket(directory):
        stage = Path(tempfile.mkdtemp())
    else:
        stage = directory.parent / f".{directory.name}.saving-{os.getpid()}"
        stage.mkdir(parents=True, exist_ok=True)
    try:
        yield stage
        if directory.exists() or is_bucket(directory):
            _replace_files(stage, directory, is_stale)
        else:
            os.rename(stage, directory)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _is_model_file(name: str) -> bool:
    return re.fullmatch(r"config\.json|model(-.*)?\.safetensors(\.index\.json)?", name) is not None


def _replace_files(stage: Path, directory: Path, is_stale: Callable[[str], bool]) -> None:
    stale = [file for file in glob(directory, "*") if is_stale(file.name)]
    for file in sorted(stale, key=_is_config, reverse=True):
        file.unlink()
    for file in sorted(stage.iterdir(), key=_is_config):
        move(file, directory / file.name)


def _is_config(file: Path) -> bool:
    return file.name in ("config.json", "adapter_config.json")
