"""Rows that read the tools' observations and nothing else: fixed plans and a linear combination."""

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
    """Every order that the tools show for each example: one dict label -> numbers an example."""
    for example in examples:
        artifacts.check(example)
    views = [AsOfView(log, example) for example in examples]
    toolbox.prepare(views)
    return [orders_of(view, toolbox) for view in views]


def plan_ranks(
    plan: Plan, evidence: Evidence, examples: Sequence[RankingExample]
) -> Int[np.ndarray, "n"]:
    """Rank of the target in the list that ``plan`` gives, 0 for a miss."""
    ranks = np.zeros(len(examples), np.int32)
    for i, (orders, example) in enumerate(zip(evidence, examples, strict=True)):
        numbers = follow(orders, plan.priority, len(example.candidates))
        if example.target_number in numbers:
            ranks[i] = numbers.index(example.target_number) + 1
    return ranks


def best_plan(
    plans: Sequence[Plan], evidence: Evidence, examples: Sequence[RankingExample]
) -> Plan:
    """The plan with the highest mean NDCG@10 on ``examples`` (choose on valid, judge on test)."""
    return max(plans, key=lambda plan: ndcg_at_k(plan_ranks(plan, evidence, examples), 10))


def evidence_features(evidence: Evidence, candidates: int = 20) -> Float[np.ndarray, "n C F"]:
    """For each candidate and label: 1/log2(place+1) in the order (0 if absent), and presence."""
    features = np.zeros((len(evidence), candidates, 2 * len(LABELS)), np.float32)
    for i, orders in enumerate(evidence):
        for f, label in enumerate(LABELS):
            for place, number in enumerate(orders.get(label, ()), 1):
                features[i, number - 1, 2 * f : 2 * f + 2] = 1 / np.log2(place + 1), 1.0
    return features


def fit_linear(
    features: Float[np.ndarray, "n C F"], targets: Int[np.ndarray, "n"], l2: float = 1e-3
) -> Float[np.ndarray, "F"]:
    """Weights of a softmax over candidates fitted to the targets (0-based), by L-BFGS."""

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
    features: Float[np.ndarray, "n C F"], weights: Float[np.ndarray, "F"]
) -> Float[np.ndarray, "n C"]:
    """Scores of the fitted combination."""
    return features @ weights
