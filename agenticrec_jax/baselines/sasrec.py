"""The row of the sequential recommender that the tools are built on, asked directly."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from agenticrec_jax.baselines.popularity import candidate_codes
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.models.sasrec import candidate_scores
from agenticrec_jax.tools.artifacts import Artifacts


def sasrec_scores(
    artifacts: Artifacts, examples: Sequence[RankingExample]
) -> Float[np.ndarray, "n C"]:
    """SASRec's score of each candidate after the example's history.

    Raises:
      InputError: if an example lies inside the artefacts' fit range.
    """
    index = artifacts.seen_from(min(examples, key=lambda example: example.time)).sasrec_index
    histories = [example.history for example in examples]
    return candidate_scores(index.model, histories, candidate_codes(examples))
