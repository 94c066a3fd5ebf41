"""Recommendations made of the policy's trajectories, or of SASRec's order alone."""

from collections.abc import Sequence

import numpy as np

from agenticrec_jax.agent.episodes import Agent
from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.agent.transcripts import observations_read
from agenticrec_jax.data.interactions import Items
from agenticrec_jax.serving.reasons import EXPLAINED, Evidence, item_reason, list_reason
from agenticrec_jax.serving.recommendations import RankedItem, Recommendation, ordinal_score
from agenticrec_jax.serving.requests import NewItem, Request
from agenticrec_jax.serving.retrieval import catalog_scores
from agenticrec_jax.tools.artifacts import Artifacts
from agenticrec_jax.tools.text import ranked as ranked_numbers
from agenticrec_jax.types import OBSERVATION, SAMPLED


def policys_answer(
    request: Request, trajectory: Trajectory, agent: Agent, *, words: int, seconds: float
) -> Recommendation:
    """Returns the answer of a finished trajectory; SASRec's order where it has no valid ranking.

    Args:
      request: with candidates.
      trajectory: of the policy.
      agent: that the trajectory was sampled with.
      words: of a title before observations cut it.
      seconds: until the trajectory ended.
    """
    evidence = read_evidence(trajectory, agent)
    reasons = []
    if trajectory.valid:
        numbers = trajectory.ranking[: request.question.k]
        for number in numbers[:EXPLAINED]:
            _, title = _name(request.candidates[number - 1], agent.log.items)
            reasons.append(item_reason(number, title, evidence, words))
    else:
        numbers = order_by_sasrec(agent.artifacts, request)[: request.question.k]
    origin = trajectory.origin
    return _recommendation(
        request,
        agent.log.items,
        numbers,
        reasons,
        evidence=evidence,
        fallback=trajectory.invalid_reason,
        seconds=seconds,
        tokens=(
            len(trajectory.prompt),
            int((origin == SAMPLED).sum()),
            int((origin == OBSERVATION).sum()),
        ),
    )


def sasrecs_answer(
    request: Request, items: Items, artifacts: Artifacts, *, reason: str, seconds: float
) -> Recommendation:
    """Returns SASRec's order of a request's candidates as an answer.

    Args:
      request: with candidates.
      items: the catalog.
      artifacts: with the SASRec index.
      reason: why the policy did not rank.
      seconds: since the request was made.
    """
    numbers = order_by_sasrec(artifacts, request)[: request.question.k]
    return _recommendation(
        request,
        items,
        numbers,
        [],
        evidence=(),
        fallback=reason,
        seconds=seconds,
        tokens=(0, 0, 0),
    )


def order_by_sasrec(artifacts: Artifacts, request: Request) -> list[int]:
    """Returns the numbers of a request's candidates, from 1, by SASRec; unknown items come last."""
    scores = catalog_scores(artifacts, request, request.items.tolist())
    known = [-np.inf if isinstance(c, NewItem) else scores[c] for c in request.candidates]
    return ranked_numbers(known, np.zeros(len(known)))


def read_evidence(trajectory: Trajectory, agent: Agent) -> tuple[Evidence, ...]:
    """Returns the calls of a trajectory with what the policy read of their observations."""
    texts = observations_read(trajectory, agent.prompts.tokenizer)
    texts += [""] * (len(trajectory.calls) - len(texts))
    return tuple(
        Evidence(call.name, call.arguments, call.observation, text, call.ok, call.seconds)
        for call, text in zip(trajectory.calls, texts, strict=True)
    )


def _recommendation(
    request: Request,
    items: Items,
    numbers: Sequence[int],
    reasons: Sequence[str],
    *,
    evidence: tuple[Evidence, ...],
    fallback: str | None,
    seconds: float,
    tokens: tuple[int, int, int],
) -> Recommendation:
    """Returns the recommendation of candidate numbers, the first of which may have reasons."""
    names = [_name(candidate, items) for candidate in request.candidates]
    ranked = [
        RankedItem(
            rank=rank,
            item_id=names[number - 1][0],
            title=names[number - 1][1],
            ordinal_score=ordinal_score(rank),
            reason=reasons[rank - 1] if rank <= len(reasons) else None,
        )
        for rank, number in enumerate(numbers, 1)
    ]
    why = f"SASRec's order, without a ranking of the policy: {fallback}"
    return Recommendation(
        user=request.question.user,
        time=request.time,
        events=len(request.items),
        candidates=tuple(item_id for item_id, _ in names),
        retrieved=request.question.candidates is None,
        items=tuple(ranked),
        reason=why if fallback else list_reason(numbers, evidence),
        evidence=evidence,
        fallback=fallback,
        seconds=seconds,
        tokens=dict(zip(("prompt", "sampled", "observed"), tokens, strict=True)),
    )


def _name(candidate: int | NewItem, items: Items) -> tuple[str, str]:
    """Returns id and title of a candidate."""
    if isinstance(candidate, NewItem):
        return candidate.item_id, candidate.title.strip() or candidate.item_id
    return items.item_id[candidate], items.title[candidate]
