"""Decision tokens: the sampled tokens in which a policy chooses, in thoughts and tools' names.

A mean over all tokens hides whether a policy still chooses: most tokens copy or keep a format. So
an entropy target can be set for decisions alone (`losses.entropy`).

A policy that writes ``<think> what is similar?</think><tool_call>{"name":"get_similar_items",..``
makes its choice in the thought. The name after it is certain by then, so a target for names alone
would act where nothing is left to choose. Where no thought stands before a call, the choice is in
the name. Numbers of a list in a thought, as in ``draft:7,3,12,``, are an order that the policy
copies or writes down. They are many, and their entropy would hide that of the choices.
"""

import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from agenticrec_jax.agent import protocol
from agenticrec_jax.losses.entropy import entropy_coefficient
from agenticrec_jax.runtime.metric_logging import Metric, mean_of
from agenticrec_jax.training.types import RolloutBatch

_OPEN_THOUGHT = re.compile(
    f"{protocol.THINK_OPEN}(.*?)(?:{protocol.CALL_OPEN}|{protocol.ANSWER_OPEN}|\\Z)", re.S
)
_LIST = re.compile(r"(?<=:)(?:\s*\d+,)+(?:\s*\d+\b)?|\b\d+(?:,\s*\d+)+,?")
_CALL = re.compile(
    f"{protocol.CALL_OPEN}(.*?)(?={protocol.CALL_CLOSE}|{protocol.CALL_OPEN}|\0|\\Z)", re.S
)
_TEXT = r'(?:[^"\\]|\\.)*'  # inside the quotes of a JSON string, which may be cut off
_JSON = re.compile(rf'"name"\s*:\s*"(?P<name>{_TEXT})"?|"{_TEXT}"|[{{}}\[\]]', re.S)
_COEFFICIENT = "decision_coef"  # in the carried values and the metrics


def decision_tokens(
    ids: Int[np.ndarray, "T"],
    sampled: Bool[np.ndarray, "T"],
    spelling: Callable[[int], str],
) -> Bool[np.ndarray, "T"]:
    """Returns the sampled tokens of a completion that lie in a thought or in a tool's name.

    Thoughts and calls are those of `protocol`: a name in a closed thought is part of the thought,
    and no call. A thought that is not closed ends at a call, at an answer or with its turn. In a
    thought the numbers of lists are left out: those after a colon that a comma follows, and two or
    more with commas between them.

    Only sampled text is read, so an observation that spells the tags decides nothing. A token with
    any decided character counts.

    Args:
      ids: of the completion.
      sampled: True for the tokens that the policy sampled.
      spelling: text of one id. A blank that it lacks at the start of a word does not matter.

    Example, a token a word:
      >>> words = ["<think>", "draft:", "5,", "3,", "who?", "</think>", "<tool_call>", '{"name":"',
      ...          "users", '"}', "</tool_call>", "taken:5,", "<think>", "by", "taken", "</think>",
      ...          "<answer>", "[5,3]"]
      >>> sampled = np.array([word != "taken:5," for word in words])
      >>> chosen = decision_tokens(np.arange(len(words)), sampled, words.__getitem__)
      >>> [word for word, chosen in zip(words, chosen) if chosen]
      ['draft:', 'who?', 'users', 'by', 'taken']
    """
    decided = np.zeros(len(ids), bool)
    # Turns are runs of sampled tokens; each has its own text, in which tags are found.
    edges = np.flatnonzero(np.diff(np.concatenate([[0], sampled.astype(int), [0]])))
    for start, end in edges.reshape(-1, 2):
        pieces = [spelling(int(token)) for token in ids[start:end]]
        characters = _decided_characters("".join(pieces))
        first = 0
        for token, piece in enumerate(pieces, start):
            decided[token] = characters[first : first + len(piece)].any()
            first += len(piece)
    return decided


def _decided_characters(turn: str) -> Bool[np.ndarray, "characters"]:
    """Returns the characters of a turn that lie in a thought, lists left out, or a tool's name."""
    decided = np.zeros(len(turn), bool)
    outside = protocol.with_blank_thoughts(turn)
    thoughts = []
    for start, end in protocol.closed_thoughts(turn):
        opened = turn.startswith(protocol.THINK_OPEN, start)
        text_start = start + len(protocol.THINK_OPEN) if opened else start
        thoughts.append((text_start, end - len(protocol.THINK_CLOSE)))
    thoughts += [match.span(1) for match in _OPEN_THOUGHT.finditer(outside)]
    for start, end in thoughts:
        decided[start:end] = True
        for numbers in _LIST.finditer(turn, start, end):
            decided[slice(*numbers.span())] = False
    for call in _CALL.finditer(outside):
        for start, end in _names(outside, *call.span(1)):
            decided[start:end] = True
    return decided


def _names(turn: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yields where the call between ``start`` and ``end`` has its name: not that of an argument."""
    depth = 0
    for match in _JSON.finditer(turn, start, end):
        if match[0] in ("{", "["):
            depth += 1
        elif match[0] in ("}", "]"):
            depth -= 1
        elif depth == 1 and match["name"] is not None:
            yield match.span("name")


@dataclass(frozen=True)
class EntropyTarget:
    """Keeps the mean entropy of decision tokens near a target by a bonus on theirs alone.

    Attributes:
      spelling: text of one id, see `decision_tokens`.
      target: in nats a decision token.
      rate: see `losses.entropy.entropy_coefficient`.
    """

    spelling: Callable[[int], str]
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
            decisions[p, g] = decision_tokens(row[0], row[1], self.spelling)
        return decisions

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
