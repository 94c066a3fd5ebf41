"""SASRec baseline: the sequential model of the tools, without an agent."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.evaluation.baselines.popularity import candidate_codes
from agenticrec_jax.sequential.model import candidate_scores
from agenticrec_jax.sequential.sasrec import Sasrec
from agenticrec_jax.tools.artifacts import Artifacts


def serving_model(artifacts: Artifacts, examples: Sequence[RankingExample]) -> Sasrec:
    """Returns the artifacts' SASRec for examples that lie after its fit range.

    Raises:
      InputError: an example lies inside the artifacts' fit range.
    """
    first = min(examples, key=lambda example: example.time)
    return artifacts.as_of(first).sasrec_index.model


def sasrec_scores(
    artifacts: Artifacts, examples: Sequence[RankingExample]
) -> Float[np.ndarray, "examples C"]:
    """Returns SASRec's score of each candidate after the example's history.

    Raises:
      InputError: an example lies inside the artifacts' fit range.
    """
    model = serving_model(artifacts, examples)
    histories = [example.history for example in examples]
    return candidate_scores(model, histories, candidate_codes(examples))
