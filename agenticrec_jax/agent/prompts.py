"""Prompts as token ids, in the style of the compact tokenizer or of a chat.

Templates are code; item titles and tool output are data. Data is encoded without added tokens, so
that no title can spell a marker.
"""

import abc
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from agenticrec_jax.agent import protocol
from agenticrec_jax.agent.chat import (
    AGENTICREC,
    AGENTS,
    INLINE,
    PROFILER,
    RESPONSE,
    function_schemas,
    instructions,
    profile_question,
    question,
    tools_section,
    turn,
)
from agenticrec_jax.agent.tasks import RANK
from agenticrec_jax.data.interactions import Items
from agenticrec_jax.errors import expect
from agenticrec_jax.tokenizers.base import TURN_END, TURN_START, Tokenizer, encode_within
from agenticrec_jax.types import OBSERVATION

AUTO = "auto"
# Pieces of compact prompts that a tokenizer can make one id each.
COMPACT_PHRASES = (" history:", "; candidates:", "; rank; tools:", *(f"h{n}" for n in range(1, 11)))
STYLES = {"compact": (INLINE,), "chat": (RESPONSE, INLINE)}  # observation styles, default first


@dataclasses.dataclass(frozen=True)
class PromptBuilder(abc.ABC):
    """Renders prompts, turns of the policy and observations as token ids.

    Attributes:
      tokenizer: the policy's.
      items: the catalog, for titles.
      title_tokens: longest title in ids; a longer one is cut (with the mark ``…`` in a chat).
      observation_tokens: longest tool output in ids, cut alike; 0 for no limit.
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
        """Returns the prompt of a task.

        Args:
          history: item codes, oldest first.
          candidates: item codes in the order of their numbers; two for a preference question.
          tools: schemas of the tools that may be called (``Toolbox.schemas``); may be empty.
          task: ``rank``, ``more`` or ``less``.
        """

    @abc.abstractmethod
    def profile(self, items: Sequence[int], ratings: Sequence[float], words: int) -> list[int]:
        """Returns the prompt that requests a profile of a user.

        Args:
          items: codes of the items that the user took, oldest first.
          ratings: the user's rating of each item, NaN if there is none.
          words: requested length; the compact style ignores it.
        """

    @abc.abstractmethod
    def drill(self, task: str = RANK) -> list[int]:
        """Returns the prompt of a drill of a task, which has no user and no candidates."""

    @abc.abstractmethod
    def observation(self, text: str) -> list[int]:
        """Returns the ids that follow a call: a tool's output, as data, between its markers."""

    def written(self, text: str) -> list[int]:
        """Returns the ids of a turn, or of its beginning, as the policy would write it."""
        return self.tokenizer.encode_markup(text)

    def turns(self, turns: Sequence[tuple[int, str]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Returns ids and origins of (origin, text) turns of the policy and its tools."""
        ids: list[int] = []
        origins: list[int] = []
        for origin, text in turns:
            new = self.observation(text) if origin == OBSERVATION else self.written(text)
            ids += new
            origins += [origin] * len(new)
        return tuple(ids), tuple(origins)

    def _observed(self, text: str, end: str = "") -> list[int]:
        """Returns the ids of a tool's output within its limit, and of ``end`` behind it."""
        if not self.observation_tokens:
            return self.tokenizer.encode_data(text + end)
        return encode_within(self.tokenizer, text, self.observation_tokens, end)

    def title_ids(self, item: int) -> list[int]:
        """Returns the ids by which prompts show the title of an item."""
        if item not in self._cache:
            self._cache[item] = self._encode_title(self.items.title[item])
        return self._cache[item]

    @abc.abstractmethod
    def _encode_title(self, title: str) -> list[int]: ...


class CompactPrompts(PromptBuilder):
    """The style of the compact tokenizer: one short turn, observations inline.

    A prompt reads ``<user> history: h1 scotch tape; candidates: avery labels1, hp ink2,; rank;
    tools:get_user_profile<assistant>``, an observation ``<observation>..</observation>``.

    A candidate's number stands behind its title, so that a causal policy can gather at the number
    what it has read of the title. It is the piece ``1,`` of which answers and orders consist.
    A title is the first of its words that are one id each (`CompactTokenizer.encode_words`), or its
    first ids where such words do not fill half of ``title_tokens``. What else a title has tells a
    small policy little; the log of trials is in decision 0030.
    """

    def build(self, history, candidates, tools, task=RANK):
        markup = self.tokenizer.encode_markup
        ids = markup("<user> history:")
        for number, item in enumerate(history, 1):
            ids += markup(f" h{number}") + self.title_ids(item)
        ids += markup("; candidates:")
        for number, item in enumerate(candidates, 1):
            ids += self.title_ids(item) + markup(f"{number},")
        ids += markup(f"; {_compact_question(task)}; tools:")
        for name in [tool["name"] for tool in tools] or ["none"]:
            ids += markup(name)
        return ids + markup("<assistant>")

    def profile(self, items, ratings, words):
        del words
        markup = self.tokenizer.encode_markup
        ids = markup("<user> history:")
        for number, (item, rating) in enumerate(zip(items, ratings, strict=True), 1):
            ids += markup(f" h{number}") + self.title_ids(item) + markup(rated(rating))
        return ids + markup("; profile<assistant>")

    def drill(self, task=RANK):
        return self.tokenizer.encode_markup(f"<user> {_compact_question(task)}<assistant>")

    def observation(self, text):
        return [
            self.tokenizer.marker("<observation>"),
            *self._observed(text),
            self.tokenizer.marker("</observation>"),
        ]

    def _encode_title(self, title):
        text = f" {title}"
        words = self.tokenizer.encode_words(text)
        known = 2 * len(words) >= self.title_tokens
        return (words if known else self.tokenizer.encode_data(text))[: self.title_tokens]


@dataclasses.dataclass(frozen=True)
class ChatPrompts(PromptBuilder):
    """The style of a chat, in the format that Qwen3-Instruct was trained on.

    The first turns are, id for id, what Qwen3's chat template makes of a system message, the tools
    and a user message. The template itself is never rendered with data in it: template text is
    encoded with added tokens, data without. The two are encoded apart and joined only where
    byte-level BPE splits text anyway: data is the rest of a line, with the blank before it and the
    end of the line.

    Attributes:
      tokenizer: a ``ChatTokenizer``.
      observation_style: the turns and tags around a tool's output, ``tool_response`` or
        ``observation``.
      agent: whose instructions for the reasoning are used, see `chat.APPROACHES`: ReAct for
        AgenticRec, Analyze-Plan-Act for RecThinker.
    """

    observation_style: str = RESPONSE
    agent: str = AGENTICREC

    def build(self, history, candidates, tools, task=RANK):
        markup = self.tokenizer.encode_markup
        system = instructions(
            task, len(candidates), bool(tools), mark=self.observation_style, agent=self.agent
        )
        if tools:
            system += f"\n\n{tools_section(function_schemas(tools))}"
        ids = [*self.tokenizer.prefix, *markup(turn("system", system))]
        ids += markup(f"{TURN_START}user\nTaken before, oldest first:\n")
        for number, item in enumerate(history, 1):
            ids += markup(f"h{number}.") + self.title_ids(item)
        ids += markup("Candidates:\n")
        for number, item in enumerate(candidates, 1):
            ids += markup(f"{number}.") + self.title_ids(item)
        return ids + markup(f"{question(task)}{TURN_END}\n{TURN_START}assistant\n")

    def profile(self, items, ratings, words):
        markup = self.tokenizer.encode_markup
        ids = [*self.tokenizer.prefix, *markup(turn("system", PROFILER))]
        ids += markup(f"{TURN_START}user\nTaken, oldest first:\n")
        for number, (item, rating) in enumerate(zip(items, ratings, strict=True), 1):
            ids += markup(f"h{number}{rated(rating)}.") + self.title_ids(item)
        end = f"{profile_question(words)}{TURN_END}\n{TURN_START}assistant\n"
        return ids + markup(end)

    def drill(self, task=RANK):
        text = turn("user", question(task)) + f"{TURN_START}assistant\n"
        return [*self.tokenizer.prefix, *self.tokenizer.encode_markup(text)]

    def observation(self, text):
        if self.observation_style == RESPONSE:
            # A policy that paused at its end of turn has written TURN_END itself.
            end = "" if self._pauses_at_turn_end else TURN_END
            before = f"{end}\n{TURN_START}user\n<{RESPONSE}>\n"
            after = f"</{RESPONSE}>{TURN_END}\n{TURN_START}assistant\n"
        else:
            before = f"\n<{INLINE}>\n"
            after = f"</{INLINE}>\n"
        markup = self.tokenizer.encode_markup
        return [*markup(before), *self._observed(text, "\n"), *markup(after)]

    def written(self, text):
        ends: tuple[str, ...] = (protocol.ANSWER_CLOSE,)
        if self._pauses_at_turn_end:
            ends += (protocol.CALL_CLOSE,)
        return self.tokenizer.encode_markup(text + TURN_END if text.endswith(ends) else text)

    @property
    def _pauses_at_turn_end(self) -> bool:
        """Whether ``</tool_call>`` is several ids, so that a call ends with its turn."""
        return self.tokenizer.pause_id in self.tokenizer.stop_ids

    def _encode_title(self, title):
        return self.tokenizer.encode_line(" ".join(title.split()), self.title_tokens)


def make_prompts(
    tokenizer: Tokenizer,
    items: Items,
    title_tokens: int,
    style: str = AUTO,
    observation_style: str = AUTO,
    observation_tokens: int = 0,
    agent: str = AGENTICREC,
) -> PromptBuilder:
    """Returns the prompt builder that fits a tokenizer.

    Args:
      tokenizer: the policy's.
      items: the catalog.
      title_tokens: longest title in ids.
      style: ``compact``, ``chat``, or ``auto`` for the tokenizer's.
      observation_style: ``tool_response``, ``observation``, or ``auto`` for the style's default.
      observation_tokens: longest tool output in ids; 0 for no limit.
      agent: one of `chat.AGENTS`; the compact style has no instructions and is the same for all.

    Raises:
      InputError: the tokenizer lacks the markers of the style, the style has no such observations,
        or there is no such agent.
    """
    expect(agent in AGENTS, "config.agent", agent, f"one of {', '.join(AGENTS)}")
    supported = tokenizer.prompt_style
    expect(
        style in (AUTO, supported),
        "policy.prompt_style",
        style,
        f"{AUTO} or {supported}, the style of the policy's {tokenizer.file}",
    )
    known = STYLES[supported]
    observations = known[0] if observation_style == AUTO else observation_style
    expect(
        observations in known,
        "policy.observation_style",
        observations,
        f"{AUTO} or one of {', '.join(known)} in the {supported} style",
    )
    if supported == "compact":
        return CompactPrompts(tokenizer, items, title_tokens, observation_tokens)
    expect(
        observations != INLINE or tokenizer.pause_id not in tokenizer.stop_ids,
        "policy.observation_style",
        observations,
        f"{RESPONSE}: </tool_call> is not one id in {tokenizer.file}, so that a call ends the turn "
        "that its output would be in",
    )
    return ChatPrompts(
        tokenizer,
        items,
        title_tokens,
        observation_tokens,
        observation_style=observations,
        agent=agent,
    )


def rated(rating: float) -> str:
    """Returns `` rated 4.5``, or an empty text for an unknown rating (NaN)."""
    return "" if math.isnan(rating) else f" rated {rating:g}"


def _compact_question(task: str) -> str:
    return "rank" if task == RANK else f"{task} likely next, A is 1, B is 2"
