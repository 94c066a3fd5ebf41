"""Arrays that are not finite are refused by the name of the first one."""

import jax.numpy as jnp
import pytest

from agenticrec_jax.errors import Diverged
from agenticrec_jax.runtime.finite import expect_finite
from agenticrec_jax.testing.errors import assert_names, refused

FINE = {"w": jnp.array([1.0, -3e38]), "half": jnp.ones(2, jnp.bfloat16), "step": jnp.array(7)}


def test_finite_numbers_and_integers_pass():
    expect_finite(FINE, "stage rta, step 7")


@pytest.mark.parametrize("name", ["w", "half"])
@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
def test_one_bad_number_is_refused(name, value):
    bad = FINE | {name: FINE[name].at[1].set(value)}
    sentence = refused(expect_finite, bad, "stage rta, step 7")
    assert_names(sentence, "stage rta, step 7", f"in {name},")
    with pytest.raises(Diverged):
        expect_finite(bad, "stage rta, step 7")
