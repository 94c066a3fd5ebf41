"""A stage that diverges ends with a sentence, and nothing of the bad step is written."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agenticrec_jax.errors import Diverged
from agenticrec_jax.runtime.checkpoints import Checkpoints
from agenticrec_jax.runtime.metric_logging import FILE_NAME, read_metrics
from agenticrec_jax.testing.errors import assert_names
from agenticrec_jax.training.validation import Validation


class Planted:
    """An update whose call number ``at`` brings a value into a parameter, or into the loss."""

    def __init__(self, update, at, value, into):
        self._update = update
        self._left = at
        self._value = value
        self._into = into

    def __getattr__(self, name):
        return getattr(self._update, name)

    def __call__(self, state, batches):
        state, metrics = self._update(state, batches)
        self._left -= 1
        if self._left:
            return state, metrics
        if self._into == "loss":
            return state, metrics | {"loss": (self._value, 1.0)}
        leaves, structure = jax.tree.flatten(state.params)
        leaves[1] = leaves[1].reshape(-1).at[3].set(self._value).reshape(leaves[1].shape)
        params = jax.tree.unflatten(structure, leaves)
        return dataclasses.replace(state, params=params), metrics


@pytest.mark.parametrize(
    ("value", "into"), [(jnp.nan, "a parameter"), (-jnp.inf, "a parameter"), (np.nan, "loss")]
)
def test_a_step_that_is_not_finite_is_never_written(pieces, tmp_path, value, into):
    """The second step diverges. The first one's checkpoints and metrics stay, and train on."""
    planted = dataclasses.replace(pieces, update=Planted(pieces.update, 2, value, into))

    def run(stage):
        with (
            Checkpoints(tmp_path / "checkpoints", {}) as checkpoints,
            Checkpoints(tmp_path / "best", {}, max_to_keep=None) as best,
        ):
            scores = iter(range(1, 9))
            validation = Validation(1, lambda params: next(scores), best)
            try:
                stage.run(tmp_path, checkpoints, validation, steps=3)
            except Diverged as error:
                return str(error), checkpoints.steps, best.steps
            return None, checkpoints.steps, best.steps

    sentence, saved, best = run(planted)
    assert_names(sentence, "stage tiny, step 2", "loss nan" if into == "loss" else "in head.kernel")
    assert "\n" not in sentence
    assert saved == best == [1]
    assert [line["step"] for line in read_metrics(tmp_path / FILE_NAME)] == [1]
    sentence, saved, best = run(pieces)
    assert sentence is None and saved == [2, 3]
    assert [line["step"] for line in read_metrics(tmp_path / FILE_NAME)] == [1, 2, 3]
