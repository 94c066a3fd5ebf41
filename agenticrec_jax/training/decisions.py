"""Decision tokens: the sampled tokens that choose tools, and those of the last thought.

A mean over all tokens hides whether a policy still chooses: most tokens copy or keep a format. So
an entropy target can be set for decisions alone (`losses.entropy`).
"""

import functools
import re
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from agenticrec_jax.agent import protocol
from agenticrec_jax.losses.entropy import entropy_coefficient
from agenticrec_jax.runtime.metric_logging import Metric, mean_of
from agenticrec_jax.tokenizers.base import Tokenizer
from agenticrec_jax.training.types import RolloutBatch

_NAME = re.compile(re.escape(protocol.CALL_OPEN) + r'[^<]*?"name"\s*:\s*"([^"]*)')
_THOUGHT = re.compile(r"<think>(.*?)(?:</think>|$)", re.S)
_COEFFICIENT = "decision_coef"  # in the carried values and the metrics


def decision_tokens(
    ids: Int[np.ndarray, "T"],
    sampled: Bool[np.ndarray, "T"],
    spelling: Callable[[int], str],
) -> Bool[np.ndarray, "T"]:
    """Returns the sampled tokens of a completion that lie in a tool's name or the last thought.

    Names stand behind ``<tool_call>`` in a turn, thoughts in ``<think>..</think>``. Only sampled
    text is read, so an observation that spells these markers decides nothing. A token that lies
    inside in part counts.

    Args:
      ids: of the completion.
      sampled: True for the tokens that the policy sampled.
      spelling: text of one id. A blank that it lacks at the start of a word does not matter.

    Example, a token a word:
      >>> words = ["<think>", "who?", "</think>", "<tool_call>", '{"name":"', "users", '"}',
      ...          "</tool_call>", "<think>5,3,", "<think>", "users", "first", "</think>", "[5]"]
      >>> sampled = np.array([word != "<think>5,3," for word in words])
      >>> chosen = decision_tokens(np.arange(len(words)), sampled, words.__getitem__)
      >>> [word for word, chosen in zip(words, chosen) if chosen]
      ['users', 'users', 'first']
    """
    decided = np.zeros(len(ids), bool)
    thought: np.ndarray | None = None
    # Turns are runs of sampled tokens; each has its own text, in which markers are found.
    edges = np.flatnonzero(np.diff(np.concatenate([[0], sampled.astype(int), [0]])))
    for start, end in edges.reshape(-1, 2):
        pieces = [spelling(int(token)) for token in ids[start:end]]
        ends = np.cumsum([len(piece) for piece in pieces])
        begins = ends - [len(piece) for piece in pieces]

        def tokens(span: tuple[int, int], begins=begins, ends=ends, start=start) -> np.ndarray:
            inside = (begins < span[1]) & (ends > span[0]) & (ends > begins)
            return start + np.flatnonzero(inside)

        text = "".join(pieces)
        for name in _NAME.finditer(text):
            decided[tokens(name.span(1))] = True
        for match in _THOUGHT.finditer(text):
            thought = tokens(match.span(1))
    if thought is not None:
        decided[thought] = True
    return decided


@dataclass(frozen=True)
class EntropyTarget:
    """Keeps the mean entropy of decision tokens near a target by a bonus on theirs alone.

    Attributes:
      tokenizer: the policy's.
      target: in nats a decision token.
      rate: see `losses.entropy.entropy_coefficient`.
    """

    tokenizer: Tokenizer
    target: float
    rate: float

    def mark(
        self, batches: Sequence[RolloutBatch], carried: Mapping[str, Any]
    ) -> list[RolloutBatch]:
        """Returns this process's micro-batches with their decision tokens and the coefficient."""
        coefficient = carried.get(_COEFFICIENT, 0.0)
        return [
            replace(
                batch,
                decisions=self._decisions(batch),
                decision_coef=np.full(len(batch.prompts), coefficient, np.float32),
            )
            for batch in batches
        ]

    def _decisions(self, batch: RolloutBatch) -> Bool[np.ndarray, "P G T"]:
        decisions = np.zeros(batch.sampled.shape, bool)
        for p, g in np.ndindex(batch.sampled.shape[:2]):
            row = batch.completions[p, g], batch.sampled[p, g]
            decisions[p, g] = decision_tokens(row[0], row[1], self._spelling)
        return decisions

    @functools.cached_property
    def _spelling(self) -> Callable[[int], str]:
        return functools.cache(lambda token: self.tokenizer.decode([token]))

    def adjust(
        self, carried: MutableMapping[str, Any], metrics: Mapping[str, Metric]
    ) -> dict[str, Metric]:
        """Sets the coefficient of the next step by the entropy of an update's metrics.

        Args:
          carried: values that checkpoints store; the coefficient is one of them.
          metrics: of the update.

        Returns:
          the metric ``decision_coef``, the coefficient of the update that was done.
        """
        used = carried.get(_COEFFICIENT, 0.0)
        entropy = mean_of(metrics.get("decision_entropy", (0.0, 0.0)))
        carried[_COEFFICIENT] = entropy_coefficient(used, entropy, self.target, self.rate)
        return {_COEFFICIENT: (used, 1.0)}
