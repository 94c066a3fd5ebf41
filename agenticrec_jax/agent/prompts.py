"""Prompts as token ids: templates are ours, item text is data and can never spell a marker."""

import dataclasses
from collections.abc import Sequence

from agenticrec_jax.data.interactions import Items
from agenticrec_jax.models.tokenizers import CompactTokenizer
from agenticrec_jax.types import OBSERVATION

RANK = "rank"
MORE = "more"
LESS = "less"
TASKS = (RANK, MORE, LESS)


@dataclasses.dataclass(frozen=True)
class PromptBuilder:
    """Renders a user's history and the candidates in the compact style.

    ``title_tokens`` is the budget of ids for one title; a longer one ends in the mark ``…``.
    """

    tokenizer: CompactTokenizer
    items: Items
    title_tokens: int = 6
    _cache: dict[int, list[int]] = dataclasses.field(default_factory=dict)

    def build(
        self,
        history: Sequence[int],
        candidates: Sequence[int],
        tools: Sequence[str],
        task: str = RANK,
    ) -> list[int]:
        """Prompt ids for item codes ``history`` (oldest first) and ``candidates`` (as numbered).

        ``tools`` are the names that may be called, none for a run without tools. ``task`` is
        ``rank``, or ``more`` / ``less`` for a preference question over two candidates.
        """
        markup = self.tokenizer.encode_markup
        ids = markup("<user> history:")
        for place, item in enumerate(history, 1):
            ids += markup(f" h{place}") + self._title(item)
        ids += markup("; candidates:")
        for number, item in enumerate(candidates, 1):
            ids += markup(str(number)) + self._title(item)
        ids += markup(f"; {_question(task)}; tools:")
        for name in tools or ("none",):
            ids += markup(name)
        return ids + markup("<assistant>")

    def observation(self, text: str) -> list[int]:
        """Ids of a tool's output inside its markers; the text itself is data."""
        return [
            self.tokenizer.marker("<observation>"),
            *self.tokenizer.encode_data(text),
            self.tokenizer.marker("</observation>"),
        ]

    def turns(self, turns: Sequence[tuple[int, str]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids and origins of (origin, text) turns, as the policy and its tools would write them."""
        ids: list[int] = []
        origin: list[int] = []
        for kind, text in turns:
            observed = kind == OBSERVATION
            part = self.observation(text) if observed else self.tokenizer.encode_markup(text)
            ids += part
            origin += [kind] * len(part)
        return tuple(ids), tuple(origin)

    def _title(self, item: int) -> list[int]:
        if item not in self._cache:
            title = " " + self.items.title[item]
            cut = self.tokenizer.encode_cut(title, self.title_tokens) if self.title_tokens else []
            self._cache[item] = cut
        return self._cache[item]


def _question(task: str) -> str:
    return "rank" if task == RANK else f"{task} likely next, A is 1, B is 2"
