"""Recommendations made of the policy's trajectories, or of SASRec's order alone."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from agenticrec_jax.agent.arrivals import PromptedEpisode
from agenticrec_jax.agent.episodes import Agent
from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.agent.transcripts import observations_read
from agenticrec_jax.data.interactions import Items
from agenticrec_jax.serving.reasons import EXPLAINED, Evidence, item_reason, list_reason
from agenticrec_jax.serving.recommendations import RankedItem, Recommendation, ordinal_score
from agenticrec_jax.serving.requests import Request
from agenticrec_jax.serving.retrieval import catalog_scores
from agenticrec_jax.tools.text import ranked
from agenticrec_jax.types import OBSERVATION, SAMPLED


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedQuestion:
    """A question that the policy can answer.

    Attributes:
      request: the question in codes, with candidates.
      prompted: the policy's episode.
    """

    request: Request
    prompted: PromptedEpisode

    @property
    def agent(self) -> Agent:
        """The agent, whose catalog has the question's new items behind its own."""
        return self.prompted.episode.agent

    @property
    def items(self) -> Items:
        """That catalog."""
        return self.agent.log.items

    @property
    def candidates(self) -> tuple[int, ...]:
        """Codes of the candidates in that catalog."""
        return self.prompted.episode.task.example.candidates


def policys_answer(
    question: PreparedQuestion, trajectory: Trajectory, *, words: int, seconds: float
) -> Recommendation:
    """Returns the answer of a finished trajectory; SASRec's order where it has no valid ranking.

    Args:
      question: the question.
      trajectory: of the policy.
      words: of a title before observations cut it.
      seconds: until the trajectory ended.
    """
    evidence = read_evidence(trajectory, question.agent)
    tokens = {
        "prompt": len(trajectory.prompt),
        "sampled": int((trajectory.origin == SAMPLED).sum()),
        "observed": int((trajectory.origin == OBSERVATION).sum()),
    }
    if not trajectory.valid:
        reason = trajectory.invalid_reason
        return sasrecs_answer(question, reason, seconds=seconds, evidence=evidence, tokens=tokens)
    numbers = trajectory.ranking[: question.request.question.k]
    titles = [question.items.title[question.candidates[n - 1]] for n in numbers[:EXPLAINED]]
    return _recommendation(
        question,
        numbers,
        reasons=[item_reason(n, t, evidence, words) for n, t in zip(numbers, titles, strict=False)],
        reason=list_reason(numbers, evidence),
        evidence=evidence,
        fallback=None,
        seconds=seconds,
        tokens=tokens,
    )


def sasrecs_answer(
    question: PreparedQuestion,
    reason: str,
    *,
    seconds: float,
    evidence: tuple[Evidence, ...] = (),
    tokens: dict[str, int] | None = None,
) -> Recommendation:
    """Returns SASRec's order of a question's candidates as an answer.

    Args:
      question: the question.
      reason: why the policy did not rank.
      seconds: since the question was asked.
      evidence: calls of the policy, if it began.
      tokens: of the policy.
    """
    return _recommendation(
        question,
        order_by_sasrec(question)[: question.request.question.k],
        reasons=[],
        reason=f"SASRec's order, without a ranking of the policy: {reason}",
        evidence=evidence,
        fallback=reason,
        seconds=seconds,
        tokens=tokens or {"prompt": 0, "sampled": 0, "observed": 0},
    )


def order_by_sasrec(question: PreparedQuestion) -> list[int]:
    """Returns the numbers of the candidates, from 1, by SASRec; unknown items come last."""
    request = question.request
    scores = catalog_scores(question.agent.artifacts, request, request.items.tolist())
    return ranked(scores[list(question.candidates)], np.zeros(len(question.candidates)))


def read_evidence(trajectory: Trajectory, agent: Agent) -> tuple[Evidence, ...]:
    """Returns the calls of a trajectory with what the policy read of their observations."""
    texts = observations_read(trajectory, agent.prompts.tokenizer)
    texts += [""] * (len(trajectory.calls) - len(texts))
    return tuple(
        Evidence(call.name, call.arguments, call.observation, text, call.ok, call.seconds)
        for call, text in zip(trajectory.calls, texts, strict=True)
    )


def _recommendation(
    question: PreparedQuestion, numbers: Sequence[int], reasons: Sequence[str], **fields
) -> Recommendation:
    """Returns the recommendation of candidate numbers, the first of which may have reasons."""
    request = question.request
    items = question.items
    return Recommendation(
        user=request.question.user,
        time=request.time,
        events=len(request.items),
        candidates=tuple(items.item_id[code] for code in question.candidates),
        retrieved=request.question.candidates is None,
        items=tuple(
            RankedItem(
                rank=rank,
                item_id=items.item_id[code],
                title=items.title[code],
                ordinal_score=ordinal_score(rank),
                reason=reasons[rank - 1] if rank <= len(reasons) else None,
            )
            for rank, code in enumerate((question.candidates[n - 1] for n in numbers), 1)
        ),
        **fields,
    )
