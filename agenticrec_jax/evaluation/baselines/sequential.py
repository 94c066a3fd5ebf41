"""Rows of sequential recommenders, without an agent, on ranking examples.

Axes: I items of the catalog, C candidates, D embedding.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.evaluation.baselines.popularity import candidate_codes
from agenticrec_jax.sequential.bpr import Bpr
from agenticrec_jax.sequential.evaluation import catalog_ranks
from agenticrec_jax.sequential.model import SequentialModel, table_scores, user_states
from agenticrec_jax.tools.artifacts import Fitted


class States(NamedTuple):
    """States of examples, and the table of items that they are scored against."""

    states: Float[np.ndarray, "examples D"]
    table: Float[Array, "I D"]

    def candidate_scores(
        self, examples: Sequence[RankingExample]
    ) -> Float[np.ndarray, "examples C"]:
        """Returns the score of each candidate of each example."""
        return table_scores(self.states, np.asarray(self.table), candidate_codes(examples))

    def catalog_ranks(
        self, examples: Sequence[RankingExample], seen: Sequence[Sequence[int]] | None = None
    ) -> Int[np.ndarray, "examples"]:
        """Returns the rank of each target among all items but those of ``seen``."""
        targets = np.array([example.target for example in examples])
        return catalog_ranks(self.states, self.table, targets, seen)


def example_states(fitted: Fitted[SequentialModel], examples: Sequence[RankingExample]) -> States:
    """Returns the state of a fitted model before the target of each example.

    That is the state after the example's history, or the vector of its user where the model is BPR.

    Args:
      fitted: the model, with the range that it was fitted on.
      examples: at least one, all after the range.

    Raises:
      InputError: an example lies inside the model's fit range.
    """
    model = fitted.as_of(min(examples, key=lambda example: example.time))
    if isinstance(model, Bpr):
        states = np.asarray(model.user_embeddings)[[example.user for example in examples]]
    else:
        states = user_states(model, [example.history for example in examples])
    return States(states, model.item_embeddings)


def model_scores(
    fitted: Fitted[SequentialModel], examples: Sequence[RankingExample]
) -> Float[np.ndarray, "examples C"]:
    """Returns a fitted model's score of each candidate of each example; see `example_states`."""
    return example_states(fitted, examples).candidate_scores(examples)
