"""Rotary positions, and two scalings that stretch them beyond the length trained on.

Rotation: Su et al. 2021, arXiv:2104.09864; Llama 3's scaling: Grattafiori et al. 2024,
arXiv:2407.21783; YaRN: Peng et al. 2023, arXiv:2309.00071.

A head of width H has H / 2 frequencies ``theta ** (-2 i / H)``. At position p the pair of
dimensions (i, i + H / 2) is rotated by the angle ``p * frequency``: dimension 0 turns fastest, and
the last dimensions turn once in thousands of positions. Values that depend on the config alone are
computed in float64 when the program is traced.

Axis letters: B rows, T tokens, N heads, H head width.
"""

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.models.fields import Fields, is_number

_LENGTH = "original_max_position_embeddings"


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3's scaling, by how often a dimension turns in the original length.

    Frequencies that turn less than ``low_freq_factor`` times are divided by ``factor``. Those that
    turn more than ``high_freq_factor`` times stay. Those between are blended.

    Frequencies of 8, 2 and 0.5 turns, divided by 4 below 1 turn and kept above 3. The second is
    half kept: (1/2 + 1/2 / 4) = 0.625.

    >>> scaling = Llama3Scaling(4.0, 1.0, 3.0, original_max_position_embeddings=100)
    >>> frequencies = 2 * np.pi * np.array([8, 2, 0.5]) / 100
    >>> print(scaling.scale(frequencies, theta=1e4) / frequencies)
    [1.    0.625 0.25 ]

    Attributes:
      factor: how much longer than the original the stretched length is.
      low_freq_factor: turns in the original length up to which a frequency is divided.
      high_freq_factor: turns from which it stays.
      original_max_position_embeddings: the length that the model was trained on first.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    @property
    def attention_factor(self) -> float:
        """Factor of cosines and sines, 1: only YaRN has another."""
        return 1.0

    def scale(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        """Returns the stretched frequencies of [H / 2] plain ones."""
        turns = self.original_max_position_embeddings * frequencies / (2 * math.pi)
        span = self.high_freq_factor - self.low_freq_factor
        unscaled = np.clip((turns - self.low_freq_factor) / span, 0, 1)
        return frequencies * (unscaled + (1 - unscaled) / self.factor)


@dataclass(frozen=True)
class YarnScaling:
    """YaRN's scaling, by the index of a dimension.

    Dimensions that turn less than ``beta_slow`` times in the original length have their frequency
    divided by ``factor``. Those that turn more than ``beta_fast`` times keep it. Those between are
    blended by their index.

    A head of width 8 with theta 10,000 has the frequencies 1, 0.1, 0.01 and 0.001. In 628 positions
    they turn 100, 10, 1 and 0.1 times. With bounds of 10 and 1 turns, index 1 stays and index 2 is
    divided by 4:

    >>> scaling = YarnScaling(4.0, 628, 1.0, beta_fast=10, beta_slow=1, truncate=False)
    >>> frequencies = 1e4 ** (-np.arange(4) / 4)
    >>> print((scaling.scale(frequencies, theta=1e4) / frequencies).round(3))
    [1.   1.   0.25 0.25]

    Attributes:
      factor: how much longer than the original the stretched length is.
      original_max_position_embeddings: the length that the model was trained on first.
      attention_factor: of cosines and sines, so attention scores are multiplied by its square.
      beta_fast: turns from which a dimension stays.
      beta_slow: turns up to which it is stretched.
      truncate: whether the bounds of the blended indices are rounded outwards.
    """

    factor: float
    original_max_position_embeddings: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def scale(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        """Returns the stretched frequencies of [H / 2] plain ones."""
        width = 2 * len(frequencies)

        def index(turns: float) -> float:
            """Solves length * theta ** (-2 i / H) = 2 pi turns for the index i."""
            wavelength = self.original_max_position_embeddings / turns
            return width * math.log(wavelength / (2 * math.pi)) / (2 * math.log(theta))

        low = index(self.beta_fast)
        high = index(self.beta_slow)
        if self.truncate:
            low = math.floor(low)
            high = math.ceil(high)
        # The last index is width // 2 - 1; the published code, and so its models, have width - 1.
        low = max(low, 0)
        high = min(high, width - 1)
        stretched = np.clip((np.arange(width // 2) - low) / max(high - low, 0.001), 0, 1)
        return frequencies * (1 - stretched + stretched / self.factor)


RopeScaling = Llama3Scaling | YarnScaling
_KINDS = {"llama3": Llama3Scaling, "yarn": YarnScaling}


def rope_tables(
    positions: Int[Array, "B T"], width: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[Float[Array, "B T 1 half"], Float[Array, "B T 1 half"]]:
    """Returns cosines and sines of the rotary angles, in float32.

    Args:
      positions: of the tokens.
      width: H, of a head.
      theta: base of the frequencies.
      scaling: stretches them.
    """
    # NumPy computes these in float64 while the program is traced; they are constants in it.
    frequencies = theta ** -(np.arange(0, width, 2) / width)
    factor = 1.0
    if scaling is not None:
        frequencies = scaling.scale(frequencies, theta)
        factor = scaling.attention_factor
    # In bfloat16 positions above 256 would not be distinct.
    angles = positions[..., None, None].astype(jnp.float32) * frequencies.astype(np.float32)
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate(
    x: Float[Array, "B T N H"], tables: tuple[Float[Array, "..."], Float[Array, "..."]]
) -> Float[Array, "B T N H"]:
    """Rotates queries or keys by ``rope_tables``, computed in float32.

    The pairs are (i, i + H / 2), the layout of Hugging Face checkpoints. A pair (a, b) becomes
    (a cos - b sin, b cos + a sin): (1, 0) rotated by a quarter turn is (0, 1).
    """
    cos, sin = tables
    # In bfloat16 a cosine is off by up to 0.002, more than a slow dimension turns in a position.
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def read_rope(raw: Mapping[str, Any], source: str) -> tuple[float, RopeScaling | None]:
    """Reads theta and scaling of a ``config.json`` dict, in the old or the new spelling or both.

    Raises:
      InputError: a scaling is not supported, lacks a field or has one that would be ignored, or the
        two spellings differ.
    """
    given = Fields(raw, source)
    names = ("rope_scaling", "rope_parameters")
    for name in names:
        value = given.value(name)
        expect(value is None or isinstance(value, dict), given.where(name), value, "a JSON object")
    scalings = {_scaling(given, name) for name in names if given.value(name)}
    if len(scalings) > 1:
        raise InputError(
            f"{source}: rope_scaling and rope_parameters: found different ones, expected the same"
        )
    parameters = Fields(given.value("rope_parameters") or {}, given.where("rope_parameters"))
    # Old and new readers may have written either; theta has no default that would be right.
    thetas = set()
    for fields_of in (given, parameters):
        partial = fields_of.value("partial_rotary_factor")
        expect(partial in (None, 1), fields_of.where("partial_rotary_factor"), partial, "1.0")
        if fields_of.value("rope_theta") is not None:
            thetas.add(fields_of.positive("rope_theta"))
    expected = "one value in rope_theta or rope_parameters"
    expect(len(thetas) == 1, f"{source}: rope_theta", sorted(thetas), expected)
    theta = thetas.pop()
    # YaRN divides by the logarithm of theta, and frequencies fall only above 1.
    expect(theta > 1, f"{source}: rope_theta", theta, "a number above 1")
    return theta, scalings.pop() if scalings else None


def write_rope(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """Returns the fields of ``config.json`` for theta and scaling, in both spellings."""
    kind = {"rope_type": "default"}
    if scaling is not None:
        name = next(name for name, cls in _KINDS.items() if isinstance(scaling, cls))
        kind = {"rope_type": name, **asdict(scaling)}
    return {
        "rope_theta": theta,
        "rope_parameters": {"rope_theta": theta, **kind},
        "rope_scaling": None if scaling is None else kind,
    }


def _scaling(config: Fields, field: str) -> RopeScaling | None:
    where = config.where(field)
    # A field that is null is as good as missing: transformers writes some of them.
    given = {name: value for name, value in config.value(field).items() if value is not None}
    # `type` is the old name of `rope_type`.
    kind = given.pop("rope_type", given.get("type", "default"))
    for name in ("type", "rope_theta", "partial_rotary_factor"):
        given.pop(name, None)
    if kind == "default":
        for name in sorted(given):
            raise InputError(f"{where}: found field {name}, expected none beside type default")
        return None
    known = isinstance(kind, str) and kind in _KINDS
    expect(known, f"{where}: type", kind, f"one of default, {', '.join(_KINDS)}")
    # The order in which transformers looks for it.
    inner = Fields(given, where)
    if config.value(_LENGTH) is not None:
        given[_LENGTH] = config.count(_LENGTH)
    elif given.get(_LENGTH) is not None:
        given[_LENGTH] = inner.count(_LENGTH)
    else:
        given[_LENGTH] = config.count("max_position_embeddings")
    if kind == "yarn":
        _resolve_attention_factor(given, where)
    return _checked(kind, given, where)


def _resolve_attention_factor(given: dict[str, Any], where: str) -> None:
    """Replaces YaRN's ``mscale`` and ``mscale_all_dim`` by the attention factor that they define.

    For a factor of 4 and neither of them it is 0.1 ln 4 + 1 = 1.139.
    """
    fields = Fields(dict(given), where)
    scales = {name: given.pop(name, None) for name in ("mscale", "mscale_all_dim")}
    if "attention_factor" in given:
        return
    stretch = 0.1 * math.log(max(fields.positive("factor"), 1.0))
    numerator = 1.0
    denominator = 0.0
    present = {
        name: fields.positive(name)
        for name, scale in scales.items()
        # transformers takes 0 as missing
        if scale is not None and not (is_number(scale) and scale == 0)
    }
    if len(present) == len(scales):
        numerator = present["mscale"]
        denominator = present["mscale_all_dim"]
    given["attention_factor"] = (numerator * stretch + 1.0) / (denominator * stretch + 1.0)


def _checked(kind: str, given: dict[str, Any], where: str) -> RopeScaling:
    known = fields(_KINDS[kind])
    # A field that is ignored would give other logits than the model's, and no error.
    for name in sorted(set(given) - {field.name for field in known}):
        raise InputError(
            f"{where}: found field {name}, expected only fields that type {kind} is known to have"
        )
    inner = Fields(given, where)
    values = {}
    for field in known:
        if field.default is not MISSING and field.name not in given:
            continue
        if field.name == "truncate":
            values[field.name] = inner.switch(field.name)
        elif field.name == _LENGTH:
            values[field.name] = inner.count(field.name)
        else:
            values[field.name] = inner.positive(field.name)
    scaling = _KINDS[kind](**values)
    if kind == "llama3":
        low = scaling.low_freq_factor
        high = scaling.high_freq_factor
        expect(low < high, f"{where}: low_freq_factor", low, f"below high_freq_factor {high}")
    else:
        slow = scaling.beta_slow
        fast = scaling.beta_fast
        expect(slow <= fast, f"{where}: beta_slow", slow, f"at most beta_fast {fast}")
    return scaling
