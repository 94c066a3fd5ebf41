"""A check that arrays are finite, before they are written."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from agenticrec_jax.errors import Diverged
from agenticrec_jax.runtime.checkpoints import named_leaves


def expect_finite(arrays: Any, where: str) -> None:
    """Raises `Diverged` unless every number in a pytree of arrays is finite.

    One small program reads the arrays where they lie; on several processes all must call this.

    Args:
      arrays: a pytree of arrays; those that are not floating point pass.
      where: beginning of the error's sentence, such as ``"stage rta, step 7"``.

    Raises:
      Diverged: names ``where`` and the first array with a NaN or an infinity.
    """
    finite = jax.device_get(_finite(named_leaves(arrays)))
    bad = [name for name, ok in finite.items() if not ok]
    if bad:
        raise Diverged(f"{where}: found a NaN or an infinity in {bad[0]}, expected finite numbers")


@jax.jit
def _finite(arrays: dict[str, Array]) -> dict[str, Bool[Array, ""]]:
    return {name: jnp.isfinite(array).all() for name, array in arrays.items()}
