"""Rotary positions: complex numbers, published scalings, both spellings, and what is refused."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from agenticrec_jax.models.rope import (
    Llama3Scaling,
    YarnScaling,
    read_rope,
    rope_tables,
    rotate,
    write_rope,
)
from agenticrec_jax.testing.errors import assert_names, refused

LLAMA = {  # Llama 3.1's
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}  # Qwen2.5's


@pytest.mark.parametrize("theta", [1e4, 5e5])
def test_rotation_multiplies_complex_numbers(theta):
    width = 12
    positions = np.array([[0, 1, 17, 900]])
    x = np.random.default_rng(0).normal(size=(1, 4, 3, width))
    pairs = x[..., : width // 2] + 1j * x[..., width // 2 :]
    angles = positions[..., None, None] / theta ** (np.arange(0, width, 2) / width)
    turned = pairs * np.exp(1j * angles)
    got = rotate(jnp.asarray(x, jnp.float32), rope_tables(jnp.asarray(positions), width, theta))
    np.testing.assert_allclose(
        got, np.concatenate([turned.real, turned.imag], -1), atol=1e-4
    )  # at position 900 an angle in float32 is good to 3e-5


def test_rotation_of_bfloat16_is_computed_in_float32():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 2, 8)), jnp.bfloat16)
    tables = rope_tables(jnp.array([[5, 300, 4001]]), 8, 1e4)
    want = rotate(x.astype(jnp.float32), tables).astype(jnp.bfloat16)
    got = rotate(x, tables)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, want)


def plain(width, theta):
    return theta ** -(np.arange(0, width, 2) / width)


def test_llama3_keeps_short_waves_and_stretches_long_ones():
    scaling = Llama3Scaling(8.0, 1.0, 4.0, 8192)
    before = plain(128, 5e5)
    ratio = scaling.scale(before, 5e5) / before
    waves = 2 * np.pi / before
    np.testing.assert_allclose(ratio[waves < 2048], 1)
    np.testing.assert_allclose(ratio[waves > 8192], 1 / 8)
    between = ratio[(waves >= 2048) & (waves <= 8192)]
    assert len(between) > 3 and (np.diff(between) < 0).all()
    turns = 8192 / waves[(waves >= 2048) & (waves <= 8192)]
    np.testing.assert_allclose(between, ((turns - 1) + (4 - turns) / 8) / 3)
    assert scaling.attention_factor == 1


def test_yarn_blends_by_the_index_of_the_dimension():
    """At Qwen2.5's values dimensions 23 to 40 of 64 are blended (worked by hand from the paper)."""
    _, scaling = read_rope({"rope_theta": 1e6, "rope_scaling": YARN}, "c")
    before = plain(128, 1e6)
    ratio = scaling.scale(before, 1e6) / before
    ramp = np.clip((np.arange(64) - 23) / (40 - 23), 0, 1)
    np.testing.assert_allclose(ratio, 1 - ramp + ramp / 4)


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ({}, 0.1 * math.log(4) + 1),
        ({"attention_factor": 0.9}, 0.9),
        (
            {"mscale": 2.0, "mscale_all_dim": 0.5},
            (0.2 * math.log(4) + 1) / (0.05 * math.log(4) + 1),
        ),
        ({"mscale": 2.0}, 0.1 * math.log(4) + 1),
        ({"mscale": 0, "mscale_all_dim": 0.7}, 0.1 * math.log(4) + 1),
        ({"mscale": 2.0, "mscale_all_dim": 0.0}, 0.1 * math.log(4) + 1),
        ({"mscale": 0.7, "mscale_all_dim": 0.7}, 1.0),
        ({"attention_factor": 1.5, "mscale": 2.0, "mscale_all_dim": 0.5}, 1.5),
    ],
)
def test_yarn_attention_factor_multiplies_cosines_and_sines(given, want):
    _, scaling = read_rope({"rope_theta": 1e6, "rope_scaling": YARN | given}, "c")
    assert scaling.attention_factor == pytest.approx(want)
    cos, sin = rope_tables(jnp.array([[0, 3]]), 8, 1e6, scaling)
    np.testing.assert_allclose(cos**2 + sin**2, np.full((1, 2, 1, 4), want**2), rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "want"),
    [
        (LLAMA, Llama3Scaling(8.0, 1.0, 4.0, 8192)),
        (YARN | {"beta_fast": 16.0}, YarnScaling(4.0, 32768, 0.1 * math.log(4) + 1, 16.0)),
        (
            YARN | {"attention_factor": 1.2, "beta_slow": 2.0, "truncate": False},
            YarnScaling(4.0, 32768, 1.2, 32.0, 2.0, False),
        ),
        ({"rope_type": "default"}, None),
    ],
)
def test_both_spellings_mean_the_same_and_are_written(given, want):
    old = {"rope_theta": 7e3, "rope_scaling": given}
    new = {"rope_parameters": {"rope_theta": 7e3, **given}}
    assert read_rope(old, "c") == read_rope(new, "c") == (7e3, want)
    written = write_rope(7e3, want)
    assert read_rope(written, "c") == (7e3, want)
    for dropped in ("rope_scaling", "rope_parameters"):
        rest = {name: value for name, value in written.items() if name != dropped}
        if want is not None or dropped == "rope_scaling":
            assert read_rope(rest, "c") == (7e3, want)


def test_the_original_length_falls_back_as_in_transformers():
    def length(**raw):
        given = {"type": "yarn", "factor": 2.0}
        _, scaling = read_rope({"rope_theta": 1e4, "rope_scaling": given, **raw}, "c")
        return scaling.original_max_position_embeddings

    assert length(max_position_embeddings=640) == 640
    assert length(max_position_embeddings=640, original_max_position_embeddings=320) == 320


@pytest.mark.parametrize(
    ("scaling", "named"),
    [
        ({"type": "linear", "factor": 2.0}, ["rope_scaling", "linear"]),
        ({"rope_type": "dynamic", "factor": 2.0}, ["rope_scaling", "dynamic"]),
        ({"rope_type": "longrope"}, ["rope_scaling", "longrope"]),
        (YARN | {"short_factor": [1.0]}, ["yarn", "short_factor"]),
        (YARN | {"factor": None}, ["factor", None]),
        (YARN | {"factor": "4"}, ["factor", "'4'"]),
        (YARN | {"beta_fast": -1}, ["beta_fast", "-1"]),
        (LLAMA | {"low_freq_factor": 4.5}, ["low_freq_factor", 4.5, "high_freq_factor", 4.0]),
        (LLAMA | {"low_freq_factor": 4.0}, ["low_freq_factor", "high_freq_factor"]),
        ({k: v for k, v in LLAMA.items() if k != "high_freq_factor"}, ["high_freq_factor"]),
        ([4.0], ["rope_scaling", "[4.0]", "object"]),
    ],
)
def test_what_would_be_ignored_or_guessed_is_refused_by_name(scaling, named):
    raw = {"rope_theta": 1e4, "rope_scaling": scaling}
    assert_names(refused(read_rope, raw, "dir/config.json"), "dir/config.json", *named)


@pytest.mark.parametrize("name", ["mscale", "mscale_all_dim"])
@pytest.mark.parametrize("value", ["0.7", -1, True, False, [], {}, math.nan, math.inf], ids=str)
@pytest.mark.parametrize("other", [None, 0, 0.0, 0.7])
def test_an_mscale_that_is_no_number_is_refused_beside_any_other(name, value, other):
    given = YARN | {"mscale": other, "mscale_all_dim": other} | {name: value}
    raw = {"rope_theta": 1e4, "rope_scaling": given}
    assert_names(refused(read_rope, raw, "c"), f"c: rope_scaling: {name}: found {value!r}")


def test_spellings_that_differ_are_refused():
    raw = {"rope_theta": 1e4, "rope_scaling": YARN, "rope_parameters": LLAMA}
    sentence = refused(read_rope, raw, "config.json")
    assert_names(sentence, "config.json", "rope_scaling", "rope_parameters")
