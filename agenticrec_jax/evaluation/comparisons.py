"""Paired comparisons of the rows of a results table, by the ranks of their targets alone."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from jaxtyping import Int

from agenticrec_jax.evaluation.report import comparison_sentence
from agenticrec_jax.metrics.ranking import hr_values, ndcg_values
from agenticrec_jax.metrics.significance import paired_difference

TRAINED_NO_TOOLS = "trained_no_tools"
SINGLE_TOOL = "scripted:"  # before the names of the rows of fixed plans of one tool
COMPARED = (
    ("rta", "warm_start"),
    ("rta", "warm_start_no_tools"),
    ("rta", TRAINED_NO_TOOLS),
    ("rta", "single_tool_mean"),
    ("rta", "scripted_agent"),
    ("rta_ppr", "rta"),
    ("rta_ppr", "warm_start"),
    ("rta_ppr", "scripted_agent"),
    ("rta_ppr", "best_fusion"),
    ("rta_ppr", "linear_combination"),
    ("rta_ppr_blanked", "warm_start_no_tools"),
    ("rta_ppr_blanked", TRAINED_NO_TOOLS),
    ("rta_ppr_permuted", "warm_start_no_tools"),
    ("rta_ppr_permuted", TRAINED_NO_TOOLS),
)
COMPARED_BY = {"ndcg@10": partial(ndcg_values, k=10), "hr@1": partial(hr_values, k=1)}


def compare_rows(ranks: Mapping[str, Int[np.ndarray, "n"]], users: Sequence) -> list[dict]:
    """Returns paired differences over the same examples, with 95% intervals; NDCG@10 first.

    The pairs of rows are those of `COMPARED` that have ranks. ``single_tool_mean`` is the mean over
    the fixed plans of one tool. A row of one seed is compared with every seed of the other.

    Args:
      ranks: of the targets by row, [examples] or [seeds * examples]; 0 for a miss or an invalid
        list.
      users: [examples] user of each example.

    Returns:
      For each pair and metric a dict with ``a``, ``b``, ``metric``, ``difference`` (a minus b),
      ``interval`` and ``sentence``, the same in words.
    """
    compared = []
    for metric, values_of in COMPARED_BY.items():
        values = {name: values_of(row_ranks) for name, row_ranks in ranks.items()}
        single = [row for name, row in values.items() if name.startswith(SINGLE_TOOL)]
        if single:
            values["single_tool_mean"] = np.mean(single, axis=0)
        for a, b in COMPARED:
            if not {a, b} <= values.keys():
                continue
            seeds = max(len(values[a]), len(values[b])) // len(users)
            first = np.tile(values[a], len(users) * seeds // len(values[a]))
            second = np.tile(values[b], len(users) * seeds // len(values[b]))
            difference = paired_difference(first, second, list(users) * seeds)
            comparison = {
                "a": a,
                "b": b,
                "metric": metric,
                "difference": difference.mean,
                "interval": [difference.low, difference.high],
            }
            compared.append(comparison | {"sentence": comparison_sentence(comparison)})
    return compared
