"""Rotary positions, and the two ways of stretching them beyond the length trained on.

Rotation: Su et al. 2021, arXiv:2104.09864; Llama 3's scaling: Grattafiori et al. 2024,
arXiv:2407.21783; YaRN: Peng et al. 2023, arXiv:2309.00071. Everything that depends on the config
alone is computed in float64 when the program is traced.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from agenticrec_jax.errors import InputError

_LENGTH = "original_max_position_embeddings"


@dataclass(frozen=True)
class Llama3Scaling:
    """Wavelengths above ``length / low_freq_factor`` are stretched by ``factor``.

    Those below ``length / high_freq_factor`` stay, those between are blended;
    ``length = original_max_position_embeddings``.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    @property
    def attention_factor(self) -> float:
        """Of cosines and sines; 1, there only for YaRN's sake."""
        return 1.0

    def scale(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        """The stretched frequencies, of [H / 2] plain ones."""
        turns = self.original_max_position_embeddings * frequencies / (2 * math.pi)
        span = self.high_freq_factor - self.low_freq_factor
        kept = np.clip((turns - self.low_freq_factor) / span, 0, 1)
        return frequencies * (kept + (1 - kept) / self.factor)


@dataclass(frozen=True)
class YarnScaling:
    """Dimensions that turn under ``beta_slow`` times in the original length are stretched.

    Those that turn over ``beta_fast`` times stay, those between are blended by their index, whose
    bounds are whole numbers with ``truncate``. Cosines and sines are multiplied by
    ``attention_factor`` (so attention scores by its square).
    """

    factor: float
    original_max_position_embeddings: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def scale(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        """The stretched frequencies, of [H / 2] plain ones."""
        width = 2 * len(frequencies)

        def index(turns: float) -> float:
            wavelength = self.original_max_position_embeddings / turns
            return width * math.log(wavelength / (2 * math.pi)) / (2 * math.log(theta))

        low, high = index(self.beta_fast), index(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, width - 1)
        stretched = np.clip((np.arange(width // 2) - low) / max(high - low, 0.001), 0, 1)
        return frequencies * (1 - stretched + stretched / self.factor)


RopeScaling = Llama3Scaling | YarnScaling
_KINDS = {"llama3": Llama3Scaling, "yarn": YarnScaling}


def rope_tables(
    positions: Int[Array, "B T"], width: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[Float[Array, "B T 1 half"], Float[Array, "B T 1 half"]]:
    """Cosines and sines of the rotary angles, in float32 (frequencies rounded from float64)."""
    frequencies, factor = theta ** -(np.arange(0, width, 2) / width), 1.0
    if scaling is not None:
        frequencies, factor = scaling.scale(frequencies, theta), scaling.attention_factor
    angles = positions[..., None, None].astype(jnp.float32) * frequencies.astype(np.float32)
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate(
    x: Float[Array, "B T N H"], tables: tuple[Float[Array, "..."], Float[Array, "..."]]
) -> Float[Array, "B T N H"]:
    """Rotary embedding in the half-split layout of Hugging Face checkpoints, in float32."""
    cos, sin = tables
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def read_rope(raw: Mapping[str, Any], source: str) -> tuple[float, RopeScaling | None]:
    """Theta and scaling of a ``config.json`` dict, in the old or the new spelling or both.

    Raises:
        InputError: if a scaling is not supported, lacks a field or has one that would be ignored,
            or if the two spellings say different things.
    """
    given = [name for name in ("rope_scaling", "rope_parameters") if raw.get(name)]
    found = {_scaling(raw, name, f"{source}: {name}") for name in given}
    if len(found) > 1:
        raise InputError(f"{source}: rope_scaling and rope_parameters differ; expected the same")
    parameters = raw.get("rope_parameters") or {}
    partial = raw.get("partial_rotary_factor", parameters.get("partial_rotary_factor"))
    if partial not in (None, 1.0):
        raise InputError(f"{source}: partial_rotary_factor is not supported; only 1.0")
    thetas = {float(t) for t in (raw.get("rope_theta"), parameters.get("rope_theta")) if t}
    if len(thetas) != 1:
        what = "no rope_theta" if not thetas else f"two different rope_theta {sorted(thetas)}"
        raise InputError(f"{source}: {what}; expected one in rope_theta or rope_parameters")
    return thetas.pop(), found.pop() if found else None


def write_rope(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """The fields of ``config.json`` for theta and scaling, in the old and the new spelling."""
    kind = {"rope_type": "default"}
    if scaling is not None:
        name = next(name for name, cls in _KINDS.items() if isinstance(scaling, cls))
        kind = {"rope_type": name, **asdict(scaling)}
    return {
        "rope_theta": theta,
        "rope_parameters": {"rope_theta": theta, **kind},
        "rope_scaling": None if scaling is None else kind,
    }


def _scaling(raw: Mapping[str, Any], field: str, where: str) -> RopeScaling | None:
    if not isinstance(raw[field], Mapping):
        raise InputError(f"{where} is {raw[field]!r}, expected a JSON object")
    given = {name: value for name, value in raw[field].items() if value is not None}
    kind = given.pop("rope_type", given.get("type", "default"))
    for name in ("type", "rope_theta", "partial_rotary_factor"):
        given.pop(name, None)
    if kind == "default":
        return None
    if kind not in _KINDS:
        raise InputError(
            f"{where} of type {kind} is not supported; expected default, {', '.join(_KINDS)}"
        )
    length = raw.get(_LENGTH) or given.get(_LENGTH) or raw.get("max_position_embeddings")
    given[_LENGTH] = length
    if kind == "yarn":
        _resolve_attention_factor(given)
    _check(kind, given, where)
    return _KINDS[kind](**given)


def _resolve_attention_factor(given: dict[str, Any]) -> None:
    """Replaces YaRN's ``mscale`` and ``mscale_all_dim`` by what they make of the factor."""
    numerator, denominator = given.pop("mscale", None), given.pop("mscale_all_dim", None)
    if "attention_factor" in given or not isinstance(given.get("factor"), int | float):
        return
    stretch = 0.1 * math.log(max(given["factor"], 1.0))
    if not (numerator and denominator):
        numerator, denominator = 1.0, 0.0
    given["attention_factor"] = (numerator * stretch + 1.0) / (denominator * stretch + 1.0)


def _check(kind: str, given: dict[str, Any], where: str) -> None:
    known = fields(_KINDS[kind])
    for name in sorted(set(given) - {field.name for field in known}):
        raise InputError(f"{where} of type {kind} has {name}, which is not supported")
    for field in known:
        value = given.get(field.name, field.default)
        if not isinstance(value, int | float) or (field.name != "truncate" and value <= 0):
            found = repr(value) if field.name in given else "nothing"
            raise InputError(f"{where}: {field.name} is {found}, expected a number above 0")
    low, high = ("low_freq_factor", "high_freq_factor")
    if kind == "llama3" and given[low] >= given[high]:
        raise InputError(f"{where}: {low} is {given[low]}, expected below {high} {given[high]}")
