"""LoRA adapters in PEFT's directory layout: ``adapter_config.json``, ``adapter_model.safetensors``.

A factor is stored as ``base_model.model.<module>.lora_A.weight`` [rank, inputs] and
``.lora_B.weight`` [outputs, rank].
"""

import collections
import math
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.models.fields import Fields
from agenticrec_jax.models.io.huggingface import module_name, staged, write_json
from agenticrec_jax.models.io.safetensors import Reader, Spec, read_json, write_weight_files
from agenticrec_jax.models.lora import LoraConfig, LoraParam, add_lora, lora_config
from agenticrec_jax.models.qwen3 import Qwen3, of_layer
from agenticrec_jax.parallel.mesh import RULES, Rules, shard_params
from agenticrec_jax.parallel.multihost import main_writes, to_host
from agenticrec_jax.paths import Path, absolute

_CONFIG = "adapter_config.json"
_STEM = "adapter_model"
# Fields of peft that we read, that do not change results, or that other fields switch on. All other
# fields must be empty or off. (Some initializations change the base too.)
_KNOWN = (
    "peft_type task_type auto_mapping base_model_name_or_path revision inference_mode peft_version "
    "r lora_alpha lora_dropout target_modules megatron_core qalora_group_size"
).split()
_NEUTRAL = {"bias": ("none",), "init_lora_weights": (True, False, "gaussian")}


class _Factor(NamedTuple):
    """The A or B of one layer.

    Attributes:
      path: of its variable in the model's state.
      layer: its index in the variable where layers are stacked, else None.
      name: of its tensor.
      hf_shape: of its tensor.
    """

    path: tuple
    layer: int | None
    name: str
    hf_shape: tuple[int, int]


def save_adapters(
    model: Qwen3, directory: str | os.PathLike, *, base_model: str | None = None
) -> None:
    """Writes the adapters of ``model``, without its base, as ``peft`` does.

    The directory is replaced as by ``save_policy``. With several processes all of them call this
    and process 0 writes.

    Args:
      model: the policy.
      directory: to write.
      base_model: name or path from which peft loads the base.

    Raises:
      InputError: the model has no adapters, or ``directory`` is a file.
    """
    config = lora_config(model)
    if config is None:
        raise InputError(f"{directory}: found a policy without adapters to save, expected some")
    directory = absolute(directory)
    state = dict(nnx.to_flat_state(nnx.state(model, LoraParam)))
    factors = list(_factors(state))
    specs = [Spec(factor.name, factor.hf_shape, "float32") for factor in factors]
    values = (_to_hf(factor, state[factor.path].get_value()) for factor in factors)
    with main_writes(f"save_adapters {directory}") as writes:
        try:
            if writes:
                with staged(directory, _is_adapter_file) as stage:
                    write_weight_files(stage, _STEM, specs, values, sum(s.bytes for s in specs))
                    write_json(stage / _CONFIG, _to_peft(config, base_model))
        finally:  # gathering a tensor takes all processes, also after a failed write
            collections.deque(values, maxlen=0)


def load_adapters(
    model: Qwen3, directory: str | os.PathLike, *, mesh: Mesh | None = None, rules: Rules = RULES
) -> Qwen3:
    """Loads the adapters of a PEFT directory into ``model``, in place, and returns it.

    ``lora_dropout`` is not read: it belongs to peft's training.

    Args:
      model: the base, or a policy whose adapters are replaced.
      directory: has ``adapter_config.json`` and ``adapter_model.safetensors``.
      mesh: devices that the adapters are sharded over, by ``rules``.
      rules: logical axis to mesh axis.

    Raises:
      InputError: names the file and the field or tensor that is missing, unfit or not supported.
    """
    directory = Path(directory)
    config = read_adapter_config(directory)
    reader = Reader(directory, _STEM, _CONFIG)
    # On a scratch copy of the structure: adapters that do not fit leave the model as it was, and
    # those of a wrong rank are refused before they have memory.
    abstract = nnx.eval_shape(lambda: add_lora(nnx.clone(model), config, rngs=nnx.Rngs(0)))
    for factor in _factors(dict(nnx.to_flat_state(nnx.state(abstract, LoraParam)))):
        reader.expect(factor.name, factor.hf_shape)
    add_lora(model, config, rngs=nnx.Rngs(0))
    state = dict(nnx.to_flat_state(nnx.state(model, LoraParam)))
    layers = {path: [] for path in state}
    for factor in _factors(state):
        shape = state[factor.path].get_value().shape[0 if factor.layer is None else 1 :]
        tensor = reader.read(factor.name, factor.hf_shape)
        layers[factor.path].append(tensor.T.astype(np.float32).reshape(shape))
    for path, name in reader.unread():
        raise InputError(f"{path}: found tensor {name}, expected only those of {_CONFIG}")
    stacked = model.config.scan_layers
    values = {path: np.stack(xs) if stacked else xs[0] for path, xs in layers.items()}
    loaded = [(path, state[path].replace(jnp.asarray(x))) for path, x in values.items()]
    loaded = nnx.from_flat_state(loaded)
    nnx.update(model, loaded if mesh is None else shard_params(loaded, mesh, rules))
    return model


def _factors(state: dict[tuple, LoraParam]) -> Iterator[_Factor]:
    """Yields every factor of every layer; a path ends in (projection, lora, a or b)."""
    for path, variable in state.items():
        axes = variable.get_metadata()["logical_axes"]
        shape = variable.get_value().shape
        stacked = axes[0] == "layers"
        rank = shape[axes.index("rank")]
        size = math.prod(shape[int(stacked) :])
        is_a = path[-1] == "a"
        hf_shape = (rank, size // rank) if is_a else (size // rank, rank)
        for layer in range(shape[0]) if stacked else (None,):
            layer_path = path if layer is None else of_layer(path, layer)
            stem = f"base_model.model.{module_name(layer_path[:-2])}"
            yield _Factor(path, layer, f"{stem}.lora_{'A' if is_a else 'B'}.weight", hf_shape)


def _to_hf(factor: _Factor, value: jax.Array) -> np.ndarray:
    value = value if factor.layer is None else value[factor.layer]
    return to_host(value).reshape(factor.hf_shape[::-1]).T


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


def read_adapter_config(directory: str | os.PathLike) -> LoraConfig:
    """Reads the ``adapter_config.json`` of a PEFT directory.

    Raises:
      InputError: names the file and the field that is missing, of another type or not supported.
    """
    source = str(Path(directory) / _CONFIG)
    raw = read_json(Path(directory) / _CONFIG)
    given = Fields(raw, source)
    kind = raw.get("peft_type")
    expect(kind == "LORA", f"{source}: peft_type", kind, "'LORA'")
    for field, value in raw.items():
        neutral = _NEUTRAL.get(field, (None, False, [], {}))
        # 0 equals False in Python, and is another type in JSON.
        supported = any(value == x and type(value) is type(x) for x in neutral)
        expect(supported or field in _KNOWN, f"{source}: {field}", value, f"one of {neutral}")
    targets = given.texts("target_modules")
    expect(targets is not None, f"{source}: target_modules", targets, "a list of names")
    rank = given.count("r")
    alpha = given.positive("lora_alpha")
    try:
        return LoraConfig(rank, alpha, tuple(targets))
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
