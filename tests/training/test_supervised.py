"""The loop on fixed completions: a resumed run ends as one that was never stopped."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from agenticrec_jax.errors import Terminated
from agenticrec_jax.losses import dpo_preference_loss, for_batch
from agenticrec_jax.runtime.checkpoints import Checkpoints
from agenticrec_jax.runtime.metric_logging import FILE_NAME, MetricsWriter, read_metrics
from agenticrec_jax.testing.groups import VOCAB, policy
from agenticrec_jax.testing.metrics import timeless
from agenticrec_jax.training import supervised
from agenticrec_jax.training.learner import init_state, make_update
from agenticrec_jax.training.logprobs import make_scorer
from agenticrec_jax.training.packing import Packing
from agenticrec_jax.training.preferences import Preferences, Question
from agenticrec_jax.training.validation import METRIC, Validation

PACKING = Packing(10_000, prompt_buckets=8, completion_buckets=8)
OPTIMIZER = optax.adam(1e-2)


def ask(number):
    """Two random answers to a random question."""
    rng = np.random.default_rng(number)
    return [Question(rng.integers(0, VOCAB, 6), [rng.integers(0, VOCAB, 4) for _ in range(2)])]


class Stops(Preferences):
    """Pairs whose run ends by SIGTERM before step ``stop``."""

    stop = None

    def batches(self, step, packing):
        if step == self.stop:
            raise Terminated("stopped")
        return super().batches(step, packing)


def lines_of(directory):
    lines = read_metrics(directory / FILE_NAME)
    assert all(line["tokens_per_s"] > 0 for line in lines)
    return timeless(lines)


@pytest.fixture(scope="module")
def train():
    graphdef, params = policy()
    update = make_update(graphdef, for_batch(dpo_preference_loss, beta=0.5), OPTIMIZER)
    score = make_scorer(graphdef)

    def run(directory, stop=None, best=None):
        source = Stops(range(4), 2, 2, 5, ask)
        object.__setattr__(source, "stop", stop)
        validation = best and Validation(2, lambda params: 0.5, best)
        with (
            Checkpoints(directory / "checkpoints", {}) as checkpoints,
            MetricsWriter(directory) as writer,
        ):
            state = init_state(jax.tree.map(jnp.copy, params), OPTIMIZER)
            return supervised.train(
                "pairs",
                source,
                state,
                update=update,
                packing=PACKING,
                save_every=2,
                writer=writer,
                checkpoints=checkpoints,
                progress_metric="preference_margin",
                score=score,
                validation=validation,
            )

    return run


def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(train, tmp_path):
    """Stopped after three steps it goes on from the second; its reference is the first weights."""
    whole = train(tmp_path / "whole")
    with pytest.raises(Terminated):
        train(tmp_path / "cut", stop=3)
    assert len(read_metrics(tmp_path / "cut" / FILE_NAME)) == 3
    resumed = train(tmp_path / "cut")
    lines = [lines_of(tmp_path / name) for name in ("whole", "cut")]
    assert [line["step"] for line in lines[0]] == [1, 2, 3, 4] and lines[0] == lines[1]
    assert abs(lines[0][0]["preference_margin"]) < 1e-5 < 1 < lines[0][-1]["preference_margin"]
    for a, b in zip(*map(jax.tree.leaves, (whole, resumed)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_validation_is_on_its_schedule_and_the_best_is_kept(train, tmp_path):
    with Checkpoints(tmp_path / "best", {}, max_to_keep=None) as best:
        train(tmp_path, best=best)
        assert best.steps == [2]
    lines = read_metrics(tmp_path / FILE_NAME)
    assert [line.get(METRIC) for line in lines] == [None, 0.5, None, 0.5]
