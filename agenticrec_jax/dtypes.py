"""Dtypes by name: every dtype argument of the package takes what jax takes as one."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from agenticrec_jax.errors import expect


def named(dtype: Any) -> Any:
    """Returns the name of what jax takes as a dtype; any other value as it is.

    >>> named(jnp.bfloat16), named(jnp.dtype("int8")), named("f4"), named(None), named("")
    ('bfloat16', 'int8', 'float32', None, '')
    """
    if dtype is None:  # numpy's default, float64
        return None
    try:
        return jnp.dtype(dtype).name
    except (TypeError, ValueError, SyntaxError):  # as numpy raises for some texts
        return dtype


def dtype_name(dtype: DTypeLike, where: str, names: Sequence[str]) -> str:
    """Returns the name of a dtype.

    >>> import numpy as np
    >>> known = ("float32", "bfloat16")
    >>> [dtype_name(x, "dtype", known) for x in ("bfloat16", jnp.bfloat16, np.dtype("float32"))]
    ['bfloat16', 'bfloat16', 'float32']

    Args:
      dtype: a name, a scalar type of jax or NumPy, or a dtype object.
      where: the argument or setting, for errors.
      names: the dtypes that are accepted; an empty one stands for no dtype.

    Raises:
      InputError: names ``where``; it is no dtype or not one of ``names``.
    """
    name = named(dtype)
    known = ", ".join(name for name in names if name)
    expect(isinstance(name, str) and name in names, where, dtype, f"one of {known}")
    return name
