"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) on named projections of a frozen policy.

A projection ``x W`` becomes ``x W + (alpha / rank) (x A) B``. B starts at zero, so the start is
exactly the base. A and B are ``LoraParam``, a variable type of their own: where a policy has any,
the learner updates them and nothing else. They are stored in float32 whatever the base is stored
in, carry logical axes like every parameter (A is placed as W's inputs, B as W's outputs) and are
stacked where the layers are.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from agenticrec_jax.errors import InputError

TARGETS = {  # Hugging Face's names
    "q_proj": ("attention", "q"),
    "k_proj": ("attention", "k"),
    "v_proj": ("attention", "v"),
    "o_proj": ("attention", "o"),
    "gate_proj": ("mlp", "gate"),
    "up_proj": ("mlp", "up"),
    "down_proj": ("mlp", "down"),
}


class LoraParam(nnx.Param):
    """A trainable factor of an adapter."""


BASE = nnx.All(nnx.Param, nnx.Not(LoraParam))  # filter of the policy's own parameters


@dataclass(frozen=True)
class LoraConfig:
    """Adapters of ``rank`` on the projections ``targets`` of every layer, times alpha / rank."""

    rank: int
    alpha: float
    targets: tuple[str, ...] = tuple(TARGETS)

    def __post_init__(self):
        if self.rank < 1:
            raise InputError(f"LoRA rank is {self.rank}, expected at least 1")
        if self.alpha <= 0:
            raise InputError(f"LoRA alpha is {self.alpha}, expected above 0")
        for name in self.targets:
            if name not in TARGETS:
                raise InputError(f"LoRA target {name} is unknown; known: {', '.join(TARGETS)}")
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise InputError(f"LoRA targets are {self.targets}, expected one or more, each once")


class Lora(nnx.Module):
    """The adapter of one projection (of all layers' where they are stacked)."""

    def __init__(self, projection: nnx.Module, config: LoraConfig, *, rngs: nnx.Rngs):
        kernel = projection.kernel
        shape, axes = kernel[...].shape, kernel.get_metadata()["logical_axes"]
        first = int(axes[0] == "layers")
        cut = first + projection.inputs
        self.inputs, self.dtype = projection.inputs, projection.dtype
        self.scale = config.alpha / config.rank
        bound = math.prod(shape[first:cut]) ** -0.5
        a = jax.random.uniform(rngs.params(), (*shape[:cut], config.rank), minval=-1) * bound
        b = jnp.zeros((*shape[:first], config.rank, *shape[cut:]))
        self.a = LoraParam(a, logical_axes=(*axes[:cut], "rank"))
        self.b = LoraParam(b, logical_axes=(*axes[:first], "rank", *axes[cut:]))

    def __call__(self, x: Array) -> Array:
        """What is added to the projection of ``x``."""
        a, b = self.a[...].astype(self.dtype), self.b[...].astype(self.dtype)
        return self.scale * jnp.tensordot(jnp.tensordot(x.astype(self.dtype), a, self.inputs), b, 1)


def add_lora(model: nnx.Module, config: LoraConfig, *, rngs: nnx.Rngs) -> nnx.Module:
    """Puts fresh adapters on ``model`` (a ``Qwen3``), in place of any it has, and returns it."""
    for block in [model.layers] if model.config.scan_layers else model.layers:
        for part, name in TARGETS.values():
            getattr(getattr(block, part), name).lora = None
        for part, name in map(TARGETS.get, config.targets):
            projection = getattr(getattr(block, part), name)
            projection.lora = Lora(projection, config, rngs=rngs)
    return model


def lora_config(model: nnx.Module) -> LoraConfig | None:
    """What ``add_lora`` was given for ``model``, None for a policy without adapters."""
    block = model.layers if model.config.scan_layers else model.layers[0]
    projections = {n: getattr(getattr(block, part), name) for n, (part, name) in TARGETS.items()}
    found = {n: p.lora for n, p in projections.items() if p.lora is not None}
    if not found:
        return None
    lora = next(iter(found.values()))
    rank = lora.a[...].shape[-1]
    return LoraConfig(rank, lora.scale * rank, tuple(found))


def adapters_by_path(model: nnx.Module) -> dict[tuple, Lora]:
    """The adapters under the paths of their projections, such as (layers, 0, mlp, up)."""
    return {path[:-1]: m for path, m in nnx.iter_modules(model) if isinstance(m, Lora)}


def merged(kernel: Array, lora: Lora | None, layer: int | None = None) -> Array:
    """A projection's kernel (of one layer where they are stacked) with its adapter added."""
    if layer is not None:
        kernel = kernel[layer]
    if lora is None:
        return kernel
    a, b = (x[...] if layer is None else x[...][layer] for x in (lora.a, lora.b))
    return (kernel.astype(jnp.float32) + lora.scale * jnp.tensordot(a, b, 1)).astype(kernel.dtype)


def split_learned(params: Any) -> tuple[Any, nnx.State]:
    """Parameters in two: what is learned (the adapters, or all where there are none), the rest."""
    if not isinstance(params, nnx.State):
        return params, nnx.State({})
    adapters, base = nnx.split_state(params, LoraParam, ...)
    return (adapters, base) if jax.tree.leaves(adapters) else (params, nnx.State({}))


def join_learned(learned: Any, frozen: nnx.State) -> Any:
    """Parameters as they were before ``split_learned``."""
    return nnx.merge_state(learned, frozen) if jax.tree.leaves(frozen) else learned
