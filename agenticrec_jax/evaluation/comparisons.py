"""Paired comparisons of the rows of a results table, by the ranks of their targets alone."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from jaxtyping import Float, Int

from agenticrec_jax.evaluation.report import WITHOUT_TOOL, comparison_sentence
from agenticrec_jax.metrics.ranking import hr_values, ndcg_values
from agenticrec_jax.metrics.significance import Difference, holm, paired_difference

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
    # In the papers' tables the policy before training is called frozen.
    ("frozen", "frozen_no_tools"),
    ("rta", "frozen"),
    ("rta_ppr", "frozen"),
    ("recthinker_sft", "recthinker_frozen"),
    ("recthinker", "recthinker_sft"),
)
COMPARED_BY = {"ndcg@10": partial(ndcg_values, k=10), "hr@1": partial(hr_values, k=1)}


def compare_rows(ranks: Mapping[str, Int[np.ndarray, "n"]], users: Sequence) -> list[dict]:
    """Returns paired differences over the same examples, with 95% intervals; NDCG@10 first.

    The pairs of rows are those of `COMPARED` that have ranks, and the trained policy with its rows
    of one tool away. ``single_tool_mean`` is the mean over the fixed plans of one tool.

    Args:
      ranks: of the targets by row, [examples] or [seeds * examples]; 0 for a miss or an invalid
        list. A row of several seeds counts by its mean over them.
      users: [examples] user of each example.

    Returns:
      For each pair and metric a dict with ``a``, ``b``, ``metric``, ``difference`` (a minus b),
      ``interval`` and ``sentence``, the same in words.
    """
    compared = []
    pairs = [*COMPARED, *(("rta_ppr", row) for row in ranks if row.startswith(WITHOUT_TOOL))]
    for metric in COMPARED_BY:
        values = {name: example_means(each, len(users), metric) for name, each in ranks.items()}
        single = [row for name, row in values.items() if name.startswith(SINGLE_TOOL)]
        if single:
            values["single_tool_mean"] = np.mean(single, axis=0)
        for a, b in pairs:
            if {a, b} <= values.keys():
                compared.append(_comparison(a, b, metric, values, users)[0])
    return compared


def compare_with_best(
    ranks: Mapping[str, Int[np.ndarray, "n"]], users: Sequence, baselines: Sequence[str]
) -> list[dict]:
    """Returns every row's paired difference from the best baseline, by NDCG@10 with 95% intervals.

    The best baseline is that of the highest NDCG@10 on the same examples. The p-values of the table
    are one family, to which Holm's correction is applied.

    Args:
      ranks: as in `compare_rows`.
      users: [examples] user of each example.
      baselines: rows of which the best is chosen; those without ranks are passed over.

    Returns:
      A dict for each row but the best baseline, as in `compare_rows`, with ``p`` and ``p_holm``;
      no dict where no baseline has ranks.
    """
    metric = "ndcg@10"
    values = {name: example_means(each, len(users), metric) for name, each in ranks.items()}
    best = max((name for name in baselines if name in values), key=_mean_in(values), default=None)
    if best is None:
        return []
    pairs = [_comparison(a, best, metric, values, users) for a in values if a != best]
    corrected = holm([difference.p for _, difference in pairs])
    return [
        comparison | {"p": difference.p, "p_holm": p_holm}
        for (comparison, difference), p_holm in zip(pairs, corrected, strict=True)
    ]


def example_means(
    ranks: Int[np.ndarray, "n"], examples: int, metric: str
) -> Float[np.ndarray, "examples"]:
    """Returns a metric of `COMPARED_BY` of each example, its mean over the row's seeds."""
    return COMPARED_BY[metric](ranks).reshape(-1, examples).mean(axis=0)


def _mean_in(values: Mapping[str, Float[np.ndarray, "examples"]]) -> Callable[[str], float]:
    return lambda name: float(values[name].mean())


def _comparison(
    a: str,
    b: str,
    metric: str,
    values: Mapping[str, Float[np.ndarray, "examples"]],
    users: Sequence,
) -> tuple[dict, Difference]:
    difference = paired_difference(values[a], values[b], users)
    comparison = {
        "a": a,
        "b": b,
        "metric": metric,
        "difference": difference.mean,
        "interval": [difference.low, difference.high],
    }
    return comparison | {"sentence": comparison_sentence(comparison)}, difference
