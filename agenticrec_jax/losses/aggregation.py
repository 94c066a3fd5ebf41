"""How the sums over tokens become one number: the weight of a member in the whole batch.

Axes: P prompts, G members. A loss sums over a member's tokens, times the member's weight, over a
length; what kind of mean that is, is decided by the weights. They carry the denominator of the
*whole* batch, those of other micro-batches and processes included (see `losses.reductions`).
Sources: Dr. GRPO (arXiv:2503.20783) for the constant length, as AgenticRec (arXiv:2603.21613) has
it; DAPO (arXiv:2503.14476, Eq. 8) for the mean over tokens; GRPO (arXiv:2402.03300, Eq. 3) for the
mean over the means of sequences.
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
      tokens: sampled tokens of each member.
      aggregation: "constant", 1 / (P G): the loss divides by a constant length besides;
        "token_mean", 1 / (tokens of the batch): every token counts alike, long members more;
        "sequence_mean", 1 / (P G tokens of the member): every member counts alike, its tokens less
        the more it has. The last two take a loss whose length is 1 (`length_normalizer`).
      total_prompts: P of the whole batch, where ``tokens`` is a part of it.
      total_tokens: sampled tokens of the whole batch, likewise.

    Raises:
      ValueError: if aggregation is none of these.
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
    """Returns the length by which a loss divides: the longest completion allowed, or 1."""
    return float(longest) if aggregation == "constant" else 1.0
