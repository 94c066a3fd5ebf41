"""InteRecAgent: the model plans its tools at once, they run in a fixed order, and it ranks.

Huang et al., "Recommender AI Agent: Integrating Large Language Models for Interactive
Recommendations" (arXiv:2308.16505; github.com/microsoft/RecAI, InteRecAgent), with plan-first
execution and the question of their evaluation: one turn, which asks for a JSON object from
candidate to rank. Critic, demonstrations and the memory of a dialogue are left out, since a ranking
is one turn. The wording of the prompts is ours.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.errors import expect
from agenticrec_jax.language.answers import (
    UNREADABLE,
    Answer,
    literal,
    numbered,
    read_ranks,
    shown_titles,
    without_thought,
)
from agenticrec_jax.language.completion import (
    ASSISTANT,
    SYSTEM,
    USER,
    Chat,
    Completer,
    Decoding,
)
from agenticrec_jax.language.interec_tools import TOOLS, Buffer, ToolError
from agenticrec_jax.tokenizers.base import neutralize
from agenticrec_jax.tools.artifacts import Artifacts
from agenticrec_jax.tools.base import AsOfView

_LIST = re.compile(r"\[.*\]", re.S)
INSTRUCTIONS = """You are a recommendation assistant that plans its tools before it uses them. \
You are given what a user took, oldest first (h1, h2, ...), and numbered candidates, exactly one \
of which the user took next. You rank the candidates by how likely the user took them next.

Conditions on items are hard (met or not: category, brand, price) or soft (similar to some items). \
The tools share a buffer, which holds all candidates at first. They run in this order, and each of \
them can be left out:
- look_up: facts of candidates. Input: one SELECT over the table candidates(number, title, \
category, brand, price, rating, popularity). Match text by LIKE.
- hard_filter: keeps the candidates of hard conditions. Input: one SELECT number FROM candidates \
WHERE ...
- soft_filter: keeps the candidates that are similar to seed items. Input: a list of seeds such as \
["h1", "h3"].
- rank: orders the buffer. Input: an object {"schema": ..., "prefer": [...], "unwanted": [...]} \
with the schema popularity, similarity (to the seeds) or preference (by a recommender, after the \
preferred items), and lists of items such as "h1".
- map: the titles in the buffer. Input: how many.

First write a plan, a JSON list and nothing else:
[{"tool": "rank", "input": {"schema": "preference", "prefer": ["h1", "h2"], "unwanted": []}}, \
{"tool": "map", "input": 20}]
Then you receive what look_up and map return, and write the final answer: a JSON object from the \
number of each candidate to its rank, such as {"8": 1, "3": 2}. All candidates must be in it."""
_FINAL = (
    "Now write the final answer: a JSON object from the number of each of the {count} candidates "
    "to its rank, and nothing else."
)
_AGAIN = "Write the plan again: a JSON list of objects with tool and input."


@dataclass(frozen=True)
class InteRecAgent:
    """Ranks by a plan of tools and what they return.

    Attributes:
      log: of the examples.
      artifacts: fitted values of the tools; they limit the examples that can be served.
      plans: most plans of an example; a faulty one is answered by its fault.
      decoding: of plans and answers; greedy, and the authors' 512 tokens.
      title_words: words of a title before its visible cut.
    """

    log: InteractionLog
    artifacts: Artifacts
    plans: int = 3
    decoding: Decoding = Decoding(temperature=0.0, max_tokens=512)
    title_words: int = 20

    def __post_init__(self):
        expect(self.plans >= 1, "plans", self.plans, "at least 1")
        expect(self.title_words >= 1, "title_words", self.title_words, "at least 1")

    def rank(
        self,
        completer: Completer,
        examples: Sequence[RankingExample],
    ) -> list[Answer]:
        """Returns an answer to each example.

        An answer is invalid if no plan can be run, or if the final answer names no candidate. A
        model that answers at once, without a plan, has used no tool.

        Raises:
          InputError: an example lies inside the artifacts' fit range.
        """
        for example in examples:
            self.artifacts.check(example)
        open_turns = [_Conversation(self, example) for example in examples]
        all_turns = list(open_turns)
        while open_turns:
            chats = [conversation.chat for conversation in open_turns]
            texts = completer.complete(chats, self.decoding)
            for conversation, text in zip(open_turns, texts, strict=True):
                conversation.reply(text)
            open_turns = [each for each in open_turns if each.answer is None]
        return [conversation.answer for conversation in all_turns]


class _Conversation:
    """The turns about one example, up to its answer."""

    def __init__(self, agent: InteRecAgent, example: RankingExample):
        self.answer: Answer | None = None
        self._agent = agent
        self._example = example
        self._titles = shown_titles(agent.log.items, example.candidates, agent.title_words)
        self._texts: list[str] = []
        self._calls = 0
        self._planned = False
        history = shown_titles(agent.log.items, example.history, agent.title_words)
        question = (
            f"Taken before, oldest first:\n{numbered(history, mark='h')}\n"
            f"Candidates:\n{numbered(self._titles)}\nRank the candidates. Write the plan first."
        )
        turns = ((SYSTEM, INSTRUCTIONS), (USER, question))
        self.chat = Chat((example.example_id, 0), turns)

    def reply(self, text: str) -> None:
        """Takes the model's turn: runs a plan, or reads the final answer."""
        self._texts.append(text)
        plan = None if self._planned else read_plan(text)
        if self._planned or (plan is None and read_ranks(text, self._titles)):
            self._finish(read_ranks(text, self._titles))
            return
        try:
            observation = self._run(plan)
            self._planned = True
            turn = f"{neutralize(observation)}\n\n{_FINAL.format(count=len(self._titles))}"
        except ToolError as error:
            if len(self._texts) == self._agent.plans:
                self._finish(())
                return
            turn = f"{neutralize(str(error))}. {_AGAIN}"
        key = (self._example.example_id, len(self._texts))
        self.chat = self.chat.then((ASSISTANT, text), (USER, turn), key=key)

    def _run(self, plan: Mapping[str, Any] | None) -> str:
        """Returns what the tools of a plan return; they run in the order of `TOOLS`."""
        if plan is None:
            raise ToolError("no plan can be read")
        unknown = sorted(set(plan) - set(TOOLS))
        if unknown:
            raise ToolError(f"no tool is called {', '.join(unknown)[:100]}")
        view = AsOfView(self._agent.log, self._example)
        numbers = list(range(1, len(self._titles) + 1))
        buffer = Buffer(view, self._agent.artifacts.as_of(view), self._titles, numbers)
        lines = []
        for name, tool in TOOLS.items():
            if name in plan or name == "map":  # theirs too adds a map that a plan forgets
                output = tool(buffer, plan.get(name))
                self._calls += 1
                lines += [f"{name}:\n{output}"] if output is not None else []
        return "\n".join(lines)

    def _finish(self, ranking: tuple[int, ...]) -> None:
        self.answer = Answer(
            self._example.example_id,
            ranking,
            invalid_reason=None if ranking else UNREADABLE,
            calls=self._calls,
            texts=tuple(self._texts),
            unreadable=0 if ranking else 1,
        )


def read_plan(text: str) -> dict[str, Any] | None:
    """Returns the input of each tool of a plan; None if the text has no plan.

    A tool that is planned twice has its last input, as in the authors' code.

    Example:
      >>> read_plan('My plan: [{"tool": "rank", "input": {"schema": "popularity"}}]')
      {'rank': {'schema': 'popularity'}}
    """
    match = _LIST.search(without_thought(text))
    steps = literal(match[0]) if match else None
    if not isinstance(steps, list) or not steps:
        return None
    if not all(isinstance(step, dict) and isinstance(step.get("tool"), str) for step in steps):
        return None
    return {step["tool"]: step.get("input") for step in steps}
