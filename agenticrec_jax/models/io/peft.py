"""LoRA adapters in PEFT's directory layout: ``adapter_config.json``, ``adapter_model.safetensors``.

A factor is stored as ``base_model.model.<module>.lora_A.weight`` [rank, inputs] and
``.lora_B.weight`` [outputs, rank].
"""

import collections
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from agenticrec_jax.errors import InputError
from agenticrec_jax.models.io.huggingface import module_name, staged, write_json
from agenticrec_jax.models.io.safetensors import Reader, Spec, read_json, write_shards
from agenticrec_jax.models.lora import LoraConfig, LoraParam, add_lora, lora_config
from agenticrec_jax.models.qwen3 import Qwen3, of_layer
from agenticrec_jax.parallel.mesh import RULES, Rules, shard_params
from agenticrec_jax.parallel.multihost import main_writes, to_host

_CONFIG = "adapter_config.json"
_STEM = "adapter_model"
# Fields of peft's that we read, that do not touch the numbers, or that other fields switch on. All
# others must be empty or off. (Some ways of initializing change the base too.)
_KNOWN = (
    "peft_type task_type auto_mapping base_model_name_or_path revision inference_mode peft_version "
    "r lora_alpha lora_dropout target_modules megatron_core qalora_group_size"
).split()
_NEUTRAL = {"bias": ("none",), "init_lora_weights": (True, False, "gaussian")}


class _Factor(NamedTuple):
    """One A or B of one layer: its place in the state, its tensor's name and shape."""

    path: tuple
    layer: int | None
    name: str
    hf_shape: tuple[int, int]

    def part(self, value: jax.Array) -> jax.Array:
        return value if self.layer is None else value[self.layer]


def save_adapters(
    model: Qwen3, directory: str | os.PathLike, *, base_model: str | None = None
) -> None:
    """Writes the adapters of ``model``, without its base, as ``peft`` does.

    ``base_model`` is a name or path that peft loads the base from. The directory is replaced as
    ``save_policy`` does it; on several processes every one calls this and process 0 writes.

    Raises:
        InputError: if the model has no adapters, or ``directory`` is a file.
    """
    config = lora_config(model)
    if config is None:
        raise InputError(f"{directory}: found a policy without adapters to save, expected some")
    directory = Path(directory).absolute()
    state = dict(nnx.to_flat_state(nnx.state(model, LoraParam)))
    factors = list(_factors(state))
    specs = [Spec(factor.name, factor.hf_shape, "float32") for factor in factors]
    values = (_to_hf(factor, state[factor.path].get_value()) for factor in factors)
    with main_writes(f"save_adapters {directory}") as writes:
        try:
            if writes:
                with staged(directory, _is_adapter_file) as stage:
                    write_shards(stage, _STEM, specs, values, sum(s.bytes for s in specs))
                    write_json(stage / _CONFIG, _to_peft(config, base_model))
        finally:  # gathering a tensor takes every process, also after a failed write
            collections.deque(values, maxlen=0)


def load_adapters(
    model: Qwen3, directory: str | os.PathLike, *, mesh: Mesh | None = None, rules: Rules = RULES
) -> Qwen3:
    """Puts the adapters of a PEFT directory on ``model``, in place, and returns it.

    ``lora_dropout`` is not read: it is of peft's training. With ``mesh`` they are placed by
    ``rules``.

    Raises:
        InputError: names the file and the field or tensor that is missing, unfit or not supported.
    """
    directory = Path(directory)
    config = _from_peft(read_json(directory / _CONFIG), str(directory / _CONFIG))
    add_lora(model, config, rngs=nnx.Rngs(0))
    state = dict(nnx.to_flat_state(nnx.state(model, LoraParam)))
    reader, found = Reader(directory, _STEM, _CONFIG), {path: [] for path in state}
    for factor in _factors(state):
        shape = state[factor.path].get_value().shape[0 if factor.layer is None else 1 :]
        tensor = reader.read(factor.name, factor.hf_shape)
        found[factor.path].append(tensor.T.astype(np.float32).reshape(shape))
    for path, name in reader.unread():
        raise InputError(f"{path}: tensor {name} has no place in the adapters of {_CONFIG}")
    stacked = model.config.scan_layers
    values = {path: np.stack(xs) if stacked else xs[0] for path, xs in found.items()}
    loaded = [(path, state[path].replace(jnp.asarray(x))) for path, x in values.items()]
    loaded = nnx.from_flat_state(loaded)
    nnx.update(model, loaded if mesh is None else shard_params(loaded, mesh, rules))
    return model


def _factors(state: dict[tuple, LoraParam]) -> Iterator[_Factor]:
    """Every factor of every layer; a path ends in (projection, lora, a or b)."""
    for path, variable in state.items():
        axes, shape = variable.get_metadata()["logical_axes"], variable.get_value().shape
        stacked = axes[0] == "layers"
        rank, size = shape[axes.index("rank")], math.prod(shape[int(stacked) :])
        is_a = path[-1] == "a"
        hf_shape = (rank, size // rank) if is_a else (size // rank, rank)
        for layer in range(shape[0]) if stacked else (None,):
            place = path if layer is None else of_layer(path, layer)
            stem = f"base_model.model.{module_name(place[:-2])}"
            yield _Factor(path, layer, f"{stem}.lora_{'A' if is_a else 'B'}.weight", hf_shape)


def _to_hf(factor: _Factor, value: jax.Array) -> np.ndarray:
    return to_host(factor.part(value)).reshape(factor.hf_shape[::-1]).T


def _is_adapter_file(name: str) -> bool:
    return name == _CONFIG or name.startswith(_STEM)


def _to_peft(config: LoraConfig, base_model: str | None) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(config.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "use_dora": False,
        "use_rslora": False,
    }


def _from_peft(raw: dict[str, Any], source: str) -> LoraConfig:
    if raw.get("peft_type") != "LORA":
        raise InputError(f"{source}: peft_type is {raw.get('peft_type')!r}, expected 'LORA'")
    for field, value in raw.items():
        if field not in _KNOWN and value not in _NEUTRAL.get(field, (None, False, [], {})):
            raise InputError(f"{source}: {field} is {value!r}, which is not supported")
    targets = raw.get("target_modules")
    if not isinstance(targets, list):
        raise InputError(f"{source}: target_modules is {targets!r}, expected a list of names")
    for field in ("r", "lora_alpha"):
        if not isinstance(raw.get(field), int | float):
            raise InputError(f"{source}: {field} is {raw.get(field)!r}, expected a number")
    try:
        return LoraConfig(raw["r"], raw["lora_alpha"], tuple(targets))
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
