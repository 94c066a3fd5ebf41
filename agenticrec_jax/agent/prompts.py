"""Prompts as token ids: templates are ours, item text is data and can never spell a marker.

Here are what all styles share and the compact style; the style of a chat is in ``agent.chat``.
"""

import abc
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from agenticrec_jax.agent.tasks import RANK
from agenticrec_jax.data.interactions import Items
from agenticrec_jax.tokenizers.base import Tokenizer, encode_within
from agenticrec_jax.types import OBSERVATION

AGENTICREC, RECTHINKER = AGENTS = ("agenticrec", "recthinker")


@dataclasses.dataclass(frozen=True)
class PromptBuilder(abc.ABC):
    """Renders a user's history and the candidates, and what comes back from a tool.

    ``title_tokens`` is the budget of ids for one title, ``observation_tokens`` that for what a tool
    says (0 for any number); a longer one ends in the mark ``…``.
    """

    tokenizer: Tokenizer
    items: Items
    title_tokens: int = 6
    observation_tokens: int = 0
    _cache: dict[int, list[int]] = dataclasses.field(default_factory=dict, init=False)

    @abc.abstractmethod
    def build(
        self,
        history: Sequence[int],
        candidates: Sequence[int],
        tools: Sequence[Mapping[str, Any]],
        task: str = RANK,
    ) -> list[int]:
        """Prompt ids for item codes ``history`` (oldest first) and ``candidates`` (as numbered).

        ``tools`` are the schemas of those that may be called (``Toolbox.schemas``), none for a run
        without tools. ``task`` is ``rank``, or ``more`` / ``less`` for a preference question over
        two candidates.
        """

    @abc.abstractmethod
    def profile(self, items: Sequence[int], ratings: Sequence[float], words: int) -> list[int]:
        """Prompt ids that ask for a profile of who took ``items`` (codes, oldest first).

        ``ratings`` are those given to them, NaN where there is none. ``words`` is the length asked
        for, in the styles that can say it.
        """

    @abc.abstractmethod
    def drill(self) -> list[int]:
        """Prompt ids of an exercise that is about no user."""

    @abc.abstractmethod
    def observation(self, text: str) -> list[int]:
        """Ids that follow a call: a tool's output inside its markers; the text itself is data."""

    def written(self, text: str) -> list[int]:
        """Ids of a turn, or of the beginning of one, as the policy would write it."""
        return self.tokenizer.encode_markup(text)

    def turns(self, turns: Sequence[tuple[int, str]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids and origins of (origin, text) turns, as the policy and its tools would write them."""
        ids: list[int] = []
        origin: list[int] = []
        for kind, text in turns:
            part = self.observation(text) if kind == OBSERVATION else self.written(text)
            ids += part
            origin += [kind] * len(part)
        return tuple(ids), tuple(origin)

    def _observed(self, text: str, end: str = "") -> list[int]:
        """Ids of a tool's output within its budget, and of ``end`` behind it."""
        if not self.observation_tokens:
            return self.tokenizer.encode_data(text + end)
        return encode_within(self.tokenizer, text, self.observation_tokens, end)

    def _title(self, item: int) -> list[int]:
        if item not in self._cache:
            self._cache[item] = self._encode_title(self.items.title[item])
        return self._cache[item]

    @abc.abstractmethod
    def _encode_title(self, title: str) -> list[int]: ...


class CompactPrompts(PromptBuilder):
    """The style of the compact tokenizer: few words, one turn, ``<observation>`` inline."""

    def build(self, history, candidates, tools, task=RANK):
        markup = self.tokenizer.encode_markup
        ids = markup("<user> history:")
        for place, item in enumerate(history, 1):
            ids += markup(f" h{place}") + self._title(item)
        ids += markup("; candidates:")
        for number, item in enumerate(candidates, 1):
            ids += markup(str(number)) + self._title(item)
        ids += markup(f"; {_question(task)}; tools:")
        for name in [tool["name"] for tool in tools] or ["none"]:
            ids += markup(name)
        return ids + markup("<assistant>")

    def profile(self, items, ratings, words):
        del words  # a policy of this style reads no such sentence
        markup = self.tokenizer.encode_markup
        ids = markup("<user> history:")
        for place, (item, rating) in enumerate(zip(items, ratings, strict=True), 1):
            ids += markup(f" h{place}") + self._title(item) + markup(rated(rating))
        return ids + markup("; profile<assistant>")

    def drill(self):
        return self.tokenizer.encode_markup("<user> rank<assistant>")

    def observation(self, text):
        return [
            self.tokenizer.marker("<observation>"),
            *self._observed(text),
            self.tokenizer.marker("</observation>"),
        ]

    def _encode_title(self, title):
        if not self.title_tokens:
            return []
        return self.tokenizer.encode_cut(f" {title}", self.title_tokens)


def rated(rating: float) -> str:
    """`` rated 4.5``, or nothing for a rating that is not known (NaN)."""
    return "" if math.isnan(rating) else f" rated {rating:g}"


def _question(task: str) -> str:
    return "rank" if task == RANK else f"{task} likely next, A is 1, B is 2"
