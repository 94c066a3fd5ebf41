"""Operations of hand-written kernels, which XLA cannot look into."""

import math
from collections.abc import Sequence

from agenticrec_jax.dryrun.hlo import Array

# By what the kernel's name contains.
_PRODUCTS = {"_dkv": 4, "_dq": 3, "_fwd": 2}
_CUDNN_PRODUCTS = {"_bwd": 5, "_fwd": 2}


def splash_flops(name: str, operands: Sequence[Array]) -> float:
    """Returns the floating-point operations of a splash attention kernel, by attention's formula.

    A product over the head's width takes 2 H operations per head and pair of a query and a key that
    it may see. The forward kernel has 2 products, the kernel of the queries' gradients 3 and the
    kernel of the keys' and values' gradients 4. The T queries are taken to be the last of S keys.

    With T = 4, S = 10 and one head of width 8 the queries see 7 + 8 + 9 + 10 = 34 keys, and the
    forward kernel takes 2 * 2 * 34 * 8 = 1,088 operations.

    Args:
      name: the kernel's, which contains what it computes: ``splash_mha_fwd..``, ``.._dq..`` or
        ``.._dkv..``.
      operands: shapes of its operands. The first two float arrays are queries [.., N, T, H] and
        keys [.., K, S, H].
    """
    q, k = [x.dims for x in operands if "f" in x.dtype and len(x.dims) > 2][:2]
    products = next(n for part_of_name, n in _PRODUCTS.items() if part_of_name in name)
    *_, steps, width = q
    pairs = steps * k[-2] - steps * (steps - 1) / 2
    return 2 * products * math.prod(q[:-2]) * pairs * width


def cudnn_flops(name: str, operands: Sequence[Array]) -> float:
    """Returns the floating-point operations of cuDNN's attention with a dense mask.

    It computes every pair of the T queries and S keys. The forward kernel has 2 products, the
    backward kernel 5. With T = 4, S = 10 and one head of width 8 the forward kernel takes
    2 * 2 * 40 * 8 = 1,280 operations.

    Args:
      name: the kernel's: ``dot_product_attention_fwd..`` or ``.._bwd..``.
      operands: shapes of its operands, of which the first two are queries [B, T, N, H] and keys
        [B, S, K, H].
    """
    q, k = operands[:2]
    products = next(n for part_of_name, n in _CUDNN_PRODUCTS.items() if part_of_name in name)
    return 2 * products * math.prod(q.dims) * k.dims[1]
