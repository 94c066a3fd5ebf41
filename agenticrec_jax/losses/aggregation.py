"""Aggregation of token losses into one number: the weight of each member in the whole batch.

Axes: P prompts, G members. A loss sums over a member's tokens, multiplies by the member's weight
and divides by a length. The weights decide what kind of mean that is. They carry the denominator of
the *whole* batch, other micro-batches and processes included (see `losses.reductions`). Sources:
Dr. GRPO (arXiv:2503.20783) for the constant length, which AgenticRec (arXiv:2603.21613) uses; DAPO
(arXiv:2503.14476, Eq. 8) for the mean over tokens; GRPO (arXiv:2402.03300, Eq. 3) for the mean over
the means of sequences.
"""

import numpy as np
from jaxtyping import Float, Int

AGGREGATIONS = ("constant", "token_mean", "sequence_mean")


def member_weights(
    tokens: Int[np.ndarray, "P G"],
    aggregation: str = "constant",
    *,
    total_prompts: int | None = None,
    total_tokens: int | None = None,
) -> Float[np.ndarray, "P G"]:
    """Returns the weight of each member, float32.

    Args:
      tokens: number of sampled tokens of each member.
      aggregation: ``constant``, 1 / (P G), for a loss that also divides by a constant length;
        ``token_mean``, 1 / (tokens of the batch): every token has the same weight;
        ``sequence_mean``, 1 / (P G tokens of the member): every member has the same weight. The
        last two are for a loss whose length is 1 (`length_normalizer`).
      total_prompts: P of the whole batch, if ``tokens`` is a slice of it.
      total_tokens: sampled tokens of the whole batch, likewise.

    Returns:
      the weights.

    Raises:
      ValueError: aggregation is none of these.

    Example, members of 2 and 6 tokens:
      >>> tokens = np.array([[2, 6]])
      >>> for name in AGGREGATIONS:
      ...     print(name, member_weights(tokens, name).round(3))
      constant [[0.5 0.5]]
      token_mean [[0.125 0.125]]
      sequence_mean [[0.25  0.083]]
    """
    tokens = np.asarray(tokens)
    members = tokens.shape[1] * (total_prompts or len(tokens))
    if aggregation == "constant":
        weights = np.full(tokens.shape, 1.0 / max(members, 1))
    elif aggregation == "token_mean":
        total = int(tokens.sum()) if total_tokens is None else total_tokens
        weights = np.full(tokens.shape, 1.0 / max(total, 1))
    elif aggregation == "sequence_mean":
        weights = 1.0 / (members * np.maximum(tokens, 1))
    else:
        raise ValueError(f"aggregation is {aggregation!r}, expected one of {AGGREGATIONS}")
    return weights.astype(np.float32)


def length_normalizer(aggregation: str, longest: int) -> float:
    """Returns the length by which a loss divides: the longest completion allowed, or 1.

    Args:
      aggregation: as in `member_weights`.
      longest: limit of a completion, in tokens.

    Example:
      >>> [length_normalizer(name, 512) for name in AGGREGATIONS]
      [512.0, 1.0, 1.0]
    """
    return float(longest) if aggregation == "constant" else 1.0
