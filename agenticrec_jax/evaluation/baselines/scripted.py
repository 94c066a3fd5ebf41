"""Baselines that read the tools' observations only: fixed plans and a linear combination."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int

from agenticrec_jax.agent.scripted import LABELS, Plan, follow, orders_of
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.metrics.ranking import ndcg_at_k
from agenticrec_jax.tools.artifacts import Artifacts
from agenticrec_jax.tools.base import AsOfView, Toolbox

Evidence = list[dict[str, tuple[int, ...]]]


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


def plan_ranks(
    plan: Plan, evidence: Evidence, examples: Sequence[RankingExample]
) -> Int[np.ndarray, "examples"]:
    """Returns the rank of the target in the list that ``plan`` gives, 0 for a miss."""
    ranks = np.zeros(len(examples), np.int32)
    for i, (orders, example) in enumerate(zip(evidence, examples, strict=True)):
        numbers = follow(orders, plan.priority, len(example.candidates))
        if example.target_number in numbers:
            ranks[i] = numbers.index(example.target_number) + 1
    return ranks


def best_plan(
    plans: Sequence[Plan], evidence: Evidence, examples: Sequence[RankingExample]
) -> Plan:
    """Returns the plan with the highest mean NDCG@10 on ``examples``, those of valid."""
    return max(plans, key=lambda plan: ndcg_at_k(plan_ranks(plan, evidence, examples), 10))


def evidence_features(
    evidence: Evidence, candidates: int = 20
) -> Float[np.ndarray, "examples C F"]:
    """Returns two features F of each candidate and label: the discount of its rank, and presence.

    The discount is ``1 / log2(rank + 1)`` in the label's order, 0 for a candidate that is absent.
    """
    features = np.zeros((len(evidence), candidates, 2 * len(LABELS)), np.float32)
    for i, orders in enumerate(evidence):
        for f, label in enumerate(LABELS):
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
