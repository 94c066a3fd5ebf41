"""The comparison of rollouts: ties are accepted, all other differences are errors."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.generation.engine import Engine, EngineConfig, Reply, Request, Rollout
from agenticrec_jax.testing.agreement import differences, perturbed_logits
from agenticrec_jax.testing.models import tiny_qwen3

IDS = [4, 7, 1, 2, 9]
ORIGIN = [1, 1, 2, 1, 1]


def rollout(ids=IDS, logprobs=(-1, -2, 0, -3, -1), origin=ORIGIN, finish="stop"):
    return Rollout(
        np.array(ids, np.int32), np.array(logprobs, np.float32), np.array(origin), finish
    )


def perturbed(gap, position=3, runner_up=5):
    """The expected id leads by 1 at every position, but by ``gap`` over one id at ``position``."""
    scores = np.zeros((len(IDS), 12), np.float32)
    scores[np.arange(len(IDS)), IDS] = 1.0
    scores[position, runner_up] = 1.0 - gap
    return lambda index: scores


def never(index):
    raise AssertionError("nothing differs")


def other(**changes):
    return dataclasses.replace(rollout(), **{k: np.array(v) for k, v in changes.items()})


def test_equal_rollouts_and_rounded_log_probs_are_no_differences():
    close = other(logprobs=[-1.00005, -2, 0, -3, -1])
    assert differences([rollout(), close], [rollout(), rollout()], never) == 0


def test_a_tie_is_counted_and_later_ids_are_not_compared():
    tied = rollout([4, 7, 1, 5, 3, 3, 3], [-1, -2, 0, -3, -9, -9, -9], [1, 1, 2, 1, 1, 2, 1], "x")
    assert differences([rollout(), tied], [rollout()] * 2, perturbed(5e-5)) == 1


@pytest.mark.parametrize(
    "actual, gap, named",
    [
        (rollout([4, 7, 1, 5, 9]), 2e-4, "ids differ at 3, where one is 0.0002"),
        (rollout([4, 7, 1, 6, 9]), 5e-5, "ids differ at 3, where one is 1"),  # not the runner-up
        (rollout([4, 8, 1, 5, 9]), 5e-5, "ids differ at 1"),  # before the tie
        (rollout([4, 7, 3, 5, 9]), 5e-5, "observed ids differ at 2"),
        (other(origin=[1, 1, 1, 1, 1]), 0, "origins differ"),
        (other(logprobs=[-1, -2.001, 0, -3, -1]), 0, "log-probs of the same ids are 0.001"),
        (rollout([4, 7, 1, 5, 9], [-1, -2.001, 0, -3, -1]), 5e-5, "log-probs of the same ids"),
        (rollout(finish="token_budget"), 0, "found the end (5, 'token_budget')"),
        (rollout(IDS[:4], (-1, -2, 0, -3), ORIGIN[:4]), 0, "found the end (4, 'stop')"),
    ],
)
def test_a_difference_beyond_rounding_is_an_error(actual, gap, named):
    with pytest.raises(AssertionError) as error:
        differences([actual], [rollout()], perturbed(gap))
    assert named in str(error.value)


def test_a_missing_rollout_is_an_error():
    with pytest.raises(AssertionError, match="found 1 rollouts, expected 2"):
        differences([rollout()], [rollout()] * 2, never)


@pytest.mark.parametrize("temperature", [1.3, 0.0])
def test_the_engine_takes_the_largest_of_the_perturbed_logits(temperature):
    """At every sampled position; with another seed, member or key it does not."""
    model = tiny_qwen3(2, vocab_size=40)
    graphdef, params = nnx.split(model)
    sizes = EngineConfig(slots=2, prompt_buckets=(8,), splice_buckets=(4,), max_tokens=24)
    engine = Engine(graphdef, sizes, 3, (5,), 0)
    request = Request((7, 8, 9, 10, 11), 2, (2, 2**31))
    options = {"temperature": temperature, "seed": 2**40 + 3}

    def respond(request, member, ids):
        return Reply((30, 31))

    (group,) = engine.generate(params, [request], respond, **options)
    wrong = []
    for member, row in enumerate(group):
        sampled = row.origin == 1
        best = perturbed_logits(model, request, member, row.ids, **options).argmax(1)
        np.testing.assert_array_equal(best[sampled], row.ids[sampled])
        for args in (
            (request, 1 - member, options),
            (dataclasses.replace(request, key=(2, 1)), member, options),
            (request, member, options | {"seed": 4}),
        ):
            other_best = perturbed_logits(model, *args[:2], row.ids, **args[2]).argmax(1)
            wrong.append((other_best != row.ids)[sampled].mean())
    assert all(share > 0.5 for share in wrong) if temperature else not any(wrong)
