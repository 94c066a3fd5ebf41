"""Baselines that read the tools' observations only: fixed plans, fixed weights, a linear model.

Axes: ``examples``, C candidates, F features, ``labels`` of the orders (`LABELS`).
"""

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int

from agenticrec_jax.agent.scripted import LABELS, MAX_WEIGHT, Plan, orders_of, tools_with
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.metrics.ranking import ndcg_at_k
from agenticrec_jax.tools.artifacts import Artifacts
from agenticrec_jax.tools.base import AsOfView, Toolbox

Evidence = list[dict[str, tuple[int, ...]]]
_LONGEST_IN_INT64 = 40  # lcm(2, ..., 41) is 2.2e17; twelve times that fits in 63 bits


def gather_evidence(
    log: InteractionLog,
    toolbox: Toolbox,
    artifacts: Artifacts,
    examples: Sequence[RankingExample],
) -> Evidence:
    """Returns every order of candidates in the tools' observations of each example.

    Returns:
      A dict for each example, from the label of an order to candidate numbers, best first.

    Raises:
      InputError: an example lies inside the artifacts' fit range.
    """
    for example in examples:
        artifacts.check(example)
    views = [AsOfView(log, example) for example in examples]
    toolbox.prepare(views)
    return [orders_of(view, toolbox) for view in views]


def plan_numbers(
    plan: Plan, evidence: Evidence, examples: Sequence[RankingExample]
) -> list[tuple[int, ...]]:
    """Returns the list of candidate numbers that ``plan`` gives for each example, best first."""
    return [
        plan.rank(orders, len(example.candidates))
        for orders, example in zip(evidence, examples, strict=True)
    ]


def plan_ranks(
    plan: Plan, evidence: Evidence, examples: Sequence[RankingExample]
) -> Int[np.ndarray, "examples"]:
    """Returns the rank of the target in the list that ``plan`` gives, 0 for a miss."""
    ranks = np.zeros(len(examples), np.int32)
    lists = plan_numbers(plan, evidence, examples)
    for i, (numbers, example) in enumerate(zip(lists, examples, strict=True)):
        if example.target_number in numbers:
            ranks[i] = numbers.index(example.target_number) + 1
    return ranks


def best_plan(
    plans: Sequence[Plan], evidence: Evidence, examples: Sequence[RankingExample]
) -> Plan:
    """Returns the plan with the highest mean NDCG@10 on ``examples``, those of valid."""
    return max(plans, key=lambda plan: ndcg_at_k(plan_ranks(plan, evidence, examples), 10))


def fusion_terms(
    evidence: Evidence, candidates: int = 20, labels: Sequence[str] = LABELS
) -> Int[np.ndarray, "examples C labels"]:
    """Returns ``1 / (2 + place)`` of each candidate in each label's order, 0 where it is absent.

    The terms are whole multiples of 1 / lcm(2, ..., longest order + 1). Sums of them are exact, so
    that candidates of equal scores tie: 3 / 6 and 1 / 2 are no longer a rounding error apart.

    Example: in units of 1 / lcm(2, 3) = 1 / 6 the first place counts 3 and the second one 2.

      >>> fusion_terms([{"similar": (3, 1)}], candidates=3, labels=["similar"])[0, :, 0]
      array([2, 0, 3])
    """
    longest = max((len(order) for orders in evidence for order in orders.values()), default=0)
    unit = math.lcm(*range(2, longest + 2))
    # Longer orders need Python's integers, which are slower and never overflow.
    dtype = np.int64 if longest <= _LONGEST_IN_INT64 else object
    terms = np.zeros((len(evidence), candidates, len(labels)), dtype)
    for i, orders in enumerate(evidence):
        for j, label in enumerate(labels):
            for place, number in enumerate(orders.get(label, ())):
                terms[i, number - 1, j] = unit // (2 + place)
    return terms


def fusion_ranks(
    terms: Int[np.ndarray, "examples C labels"],
    weights: Int[np.ndarray, "labels"],
    targets: Int[np.ndarray, "examples"],
) -> Int[np.ndarray, "examples"]:
    """Returns the rank of each target in the order of `Plan.rank` with weights, without its cut.

    Args:
      terms: of `fusion_terms`.
      weights: of the labels.
      targets: column of each target, from 0.
    """
    scores = terms @ weights
    target_scores = np.take_along_axis(scores, targets[:, None], axis=1)
    lower_number = np.arange(scores.shape[1]) < targets[:, None]
    before = (scores > target_scores) | ((scores == target_scores) & lower_number)
    return 1 + before.sum(axis=1)


def best_fusion(
    evidence: Evidence,
    examples: Sequence[RankingExample],
    max_weight: int = MAX_WEIGHT,
    labels: Sequence[str] = LABELS,
) -> Plan:
    """Returns the fusing plan with the highest mean NDCG@10 on ``examples``, those of valid.

    Every weighting with weights from 0 to ``max_weight`` is tried, (1 + 3) ** 4 for four labels.
    The first one of equally good ones is taken, which has the smaller weights. Labels of weight 0
    are left out of the plan.

    Args:
      evidence: of the examples.
      examples: by which the weights are chosen.
      max_weight: highest weight of a label.
      labels: of the orders to fuse.
    """
    terms = fusion_terms(evidence, len(examples[0].candidates), labels)
    targets = np.array([example.target_number - 1 for example in examples])
    weightings = np.array(list(itertools.product(range(max_weight + 1), repeat=len(labels))))
    scores = [ndcg_at_k(fusion_ranks(terms, weights, targets), 10) for weights in weightings]
    best = weightings[int(np.argmax(scores))].tolist()
    weights = {label: weight for label, weight in zip(labels, best, strict=True) if weight}
    return Plan(tools_with(list(weights)), tuple(weights), tuple(weights.values()))


def evidence_features(
    evidence: Evidence, candidates: int = 20, labels: Sequence[str] = LABELS
) -> Float[np.ndarray, "examples C F"]:
    """Returns two features F of each candidate and label: the discount of its rank, and presence.

    The discount is ``1 / log2(rank + 1)`` in the label's order, 0 for a candidate that is absent.
    """
    features = np.zeros((len(evidence), candidates, 2 * len(labels)), np.float32)
    for i, orders in enumerate(evidence):
        for f, label in enumerate(labels):
            for rank, number in enumerate(orders.get(label, ()), 1):
                features[i, number - 1, 2 * f] = 1 / np.log2(rank + 1)
                features[i, number - 1, 2 * f + 1] = 1.0
    return features


def fit_linear(
    features: Float[np.ndarray, "examples C F"],
    targets: Int[np.ndarray, "examples"],
    l2: float = 1e-3,
) -> Float[np.ndarray, "F"]:
    """Fits the weights of a softmax over candidates to the targets by L-BFGS.

    Args:
      features: features of the candidates.
      targets: column of each target, from 0.
      l2: factor of the squared weights in the loss.
    """

    def loss(weights):
        scores = jnp.asarray(features) @ weights
        nll = optax.softmax_cross_entropy_with_integer_labels(scores, jnp.asarray(targets))
        return nll.mean() + l2 * (weights**2).sum()

    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry, _):
        weights, state = carry
        value, grad = value_and_grad(weights, state=state)
        updates, state = optimizer.update(
            grad, state, weights, value=value, grad=grad, value_fn=loss
        )
        return (optax.apply_updates(weights, updates), state), value

    start = jnp.zeros(features.shape[-1])
    (weights, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=60)
    return np.asarray(weights)


def linear_scores(
    features: Float[np.ndarray, "examples C F"], weights: Float[np.ndarray, "F"]
) -> Float[np.ndarray, "examples C"]:
    """Returns the scores of a fitted combination of features."""
    return features @ weights
