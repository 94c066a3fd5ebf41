"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) on named projections of a frozen policy.

A projection ``x W`` becomes ``x W + (alpha / rank) (x A) B``. B starts at zero, so a policy with
fresh adapters is exactly its base. A and B are of the variable type ``LoraParam``: if a policy has
any, the learner updates them and nothing else. They are stored in float32 whatever the base is
stored in, carry logical axes like every parameter (A is placed as W's inputs, B as W's outputs) and
are stacked where the layers are.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from agenticrec_jax.errors import expect

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
    """Trainable factor of an adapter."""


BASE = nnx.All(nnx.Param, nnx.Not(LoraParam))  # filter of the policy's own parameters


@dataclass(frozen=True)
class LoraConfig:
    """Adapters on named projections of every layer.

    Attributes:
      rank: of the factors.
      alpha: the adapters' output is multiplied by alpha / rank.
      targets: projections, by Hugging Face's names (``TARGETS``).

    Raises:
      InputError: names the field that makes no adapter.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = tuple(TARGETS)

    def __post_init__(self):
        expect(self.rank >= 1, "LoRA rank", self.rank, "1 or above")
        expect(self.alpha > 0, "LoRA alpha", self.alpha, "a number above 0")
        for name in self.targets:
            expect(name in TARGETS, "LoRA targets", name, f"some of {', '.join(TARGETS)}")
        once = len(set(self.targets)) == len(self.targets)
        expect(bool(self.targets) and once, "LoRA targets", self.targets, "one or more, each once")


class Lora(nnx.Module):
    """Adapter of one projection (or of a stack of layers' projections)."""

    def __init__(self, projection: nnx.Module, config: LoraConfig, *, rngs: nnx.Rngs):
        # The kernel is [(layers,) inputs.., outputs..]: A has its axes before `cut`, B the others.
        kernel = projection.kernel
        shape = kernel[...].shape
        axes = kernel.get_metadata()["logical_axes"]
        first = int(axes[0] == "layers")
        cut = first + projection.inputs
        self.inputs = projection.inputs
        self.dtype = projection.dtype
        self.scale = config.alpha / config.rank
        bound = math.prod(shape[first:cut]) ** -0.5
        a = jax.random.uniform(rngs.params(), (*shape[:cut], config.rank), minval=-1) * bound
        b = jnp.zeros((*shape[:first], config.rank, *shape[cut:]))
        self.a = LoraParam(a, logical_axes=(*axes[:cut], "rank"))
        self.b = LoraParam(b, logical_axes=(*axes[:first], "rank", *axes[cut:]))

    def __call__(self, x: Array) -> Array:
        """Returns the addend to the projection of ``x``."""
        a = self.a[...].astype(self.dtype)
        b = self.b[...].astype(self.dtype)
        # (x A) B: the product A B is as large as the kernel.
        return self.scale * jnp.tensordot(jnp.tensordot(x.astype(self.dtype), a, self.inputs), b, 1)


def add_lora(model: nnx.Module, config: LoraConfig, *, rngs: nnx.Rngs) -> nnx.Module:
    """Adds fresh adapters to a ``Qwen3`` in place, instead of any that it has, and returns it."""
    for block in [model.layers] if model.config.scan_layers else model.layers:
        for target in TARGETS:
            _projection(block, target).lora = None
        for target in config.targets:
            projection = _projection(block, target)
            projection.lora = Lora(projection, config, rngs=rngs)
    return model


def _projection(block: nnx.Module, target: str) -> nnx.Module:
    module, name = TARGETS[target]
    return getattr(getattr(block, module), name)


def lora_config(model: nnx.Module) -> LoraConfig | None:
    """Returns the configuration of a policy's adapters, None if it has none."""
    block = model.layers if model.config.scan_layers else model.layers[0]
    adapters = {target: _projection(block, target).lora for target in TARGETS}
    adapters = {target: lora for target, lora in adapters.items() if lora is not None}
    if not adapters:
        return None
    lora = next(iter(adapters.values()))
    rank = lora.a[...].shape[-1]
    return LoraConfig(rank, lora.scale * rank, tuple(adapters))


def adapters_by_path(model: nnx.Module) -> dict[tuple, Lora]:
    """Returns the adapters by the paths of their projections, such as (layers, 0, mlp, up)."""
    return {path[:-1]: m for path, m in nnx.iter_modules(model) if isinstance(m, Lora)}


def merged(kernel: Array, lora: Lora | None, layer: int | None = None) -> Array:
    """Returns a projection's kernel (one layer of a stack) with its adapter added."""
    if layer is not None:
        kernel = kernel[layer]
    if lora is None:
        return kernel
    a, b = (x[...] if layer is None else x[...][layer] for x in (lora.a, lora.b))
    # Added in float32 and rounded once: a bfloat16 sum would lose most of a small adapter.
    return (kernel.astype(jnp.float32) + lora.scale * jnp.tensordot(a, b, 1)).astype(kernel.dtype)


def split_learned(params: Any) -> tuple[Any, nnx.State]:
    """Splits parameters into the learned ones (adapters, or all if there are none) and the rest."""
    if not isinstance(params, nnx.State):
        return params, nnx.State({})
    adapters, base = nnx.split_state(params, LoraParam, ...)
    return (adapters, base) if jax.tree.leaves(adapters) else (params, nnx.State({}))


def join_learned(learned: Any, frozen: nnx.State) -> Any:
    """Returns the parameters as they were before ``split_learned``."""
    return nnx.merge_state(learned, frozen) if jax.tree.leaves(frozen) else learned
