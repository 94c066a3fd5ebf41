"""The row that knows nothing. Its exact expectation is ``evaluation.metrics.expected_metrics``."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.data.splits import FitRange


def chance_scores(
    log: InteractionLog,
    fit_range: FitRange,
    examples: Sequence[RankingExample],
    *,
    seed: int = 0,
) -> Float[np.ndarray, "n C"]:
    """Uniform scores, drawn from (seed, example) and from nothing in the log."""
    del log, fit_range
    return np.stack(
        [
            np.random.default_rng((seed, example.example_id)).random(len(example.candidates))
            for example in examples
        ]
    )
