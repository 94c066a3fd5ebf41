"""SASRec baseline: the sequential model of the tools, without an agent."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.evaluation.baselines.sequential import model_scores
from agenticrec_jax.sequential.sasrec import Sasrec
from agenticrec_jax.tools.artifacts import Artifacts, Fitted


def fitted_sasrec(artifacts: Artifacts) -> Fitted[Sasrec]:
    """Returns the artifacts' SASRec, for examples that lie after its fit range."""
    return artifacts.derive(lambda data: data.sasrec_index.model, "artifacts")


def sasrec_scores(
    artifacts: Artifacts, examples: Sequence[RankingExample]
) -> Float[np.ndarray, "examples C"]:
    """Returns SASRec's score of each candidate after the example's history.

    Raises:
      InputError: an example lies inside the artifacts' fit range.
    """
    return model_scores(fitted_sasrec(artifacts), examples)
