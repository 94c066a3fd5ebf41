"""Prompts in the format of a chat, as Qwen3-Instruct was trained on it.

The first turns are, id for id, what Qwen3's chat template makes of a system message, the tools and
a user message; but the template is never rendered with data in it. Segments of ours are encoded
with added tokens, data without any, and the two meet where byte-level BPE splits text anyway: data
is the rest of a line, with the blank before it and the end of the line.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from agenticrec_jax.agent import protocol
from agenticrec_jax.agent.prompts import AGENTICREC, RECTHINKER, PromptBuilder, rated
from agenticrec_jax.agent.tasks import MORE, RANK
from agenticrec_jax.tokenizers.base import TURN_END, TURN_START

RESPONSE = "tool_response"  # a turn of the user's, as Qwen3 was trained on
INLINE = "observation"  # inside the policy's own turn, as in the paper

_TOOLS = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{schemas}
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""
_REACT = "Reason within <think></think> before each step."
_INVESTIGATE = (
    "You are an investigator. Before each step write three parts within <think></think>. Analyze: "
    "is what you know of the user and of the candidates enough to rank them, and if not, what is "
    "missing? Plan: which function would close that gap, and for which items? Act: what you do "
    "next. Call no function whose answer you have, and rank as soon as you know enough."
)
APPROACHES = {AGENTICREC: _REACT, RECTHINKER: _INVESTIGATE}  # what an agent is told of its steps
_GIVEN = (
    "You are a recommendation agent. You are given what a user took before, oldest first "
    "(h1, h2, ...), and numbered candidates, exactly one of which the user took next."
)
_CALLS = (
    f"You may call functions, one at a time and at most {protocol.MAX_CALLS} in all. What a "
    "function returns comes back within <{mark}></{mark}>; then reason again."
)
_RANKING = (
    "End with the numbers of the {count} candidates that the user most likely took next, best "
    "first and each once: <answer>\\boxed{{[8,3,15,...]}}</answer>"
)
_CHOICE = (
    "End with the letter of the candidate: <answer>\\boxed{A}</answer> for candidate 1, "
    "<answer>\\boxed{B}</answer> for candidate 2"
)

PROFILER = (  # the system turn where a profile is asked for
    "You write profiles of users for a recommendation agent. You are given what a user took, "
    "oldest first (h1, h2, ...), and how the user rated it where that is known."
)
_PROFILE = (
    "Describe the user's long-term interests in at most {words} words: kinds of items, brands, "
    "what the user likes and dislikes, how it changed. Write nothing but the profile."
)


def instructions(
    task: str, candidates: int, tools: bool, mark: str = RESPONSE, agent: str = AGENTICREC
) -> str:
    """What the system turn says before its tools: the task, how to go on, the form of the answer.

    ``candidates`` is their number, ``mark`` names the tags around a tool's output. Without tools
    every agent reasons as AgenticRec's.
    """
    reason = APPROACHES[agent if tools else AGENTICREC]
    calls = f" {_CALLS.format(mark=mark)}" if tools else ""
    count = min(protocol.RANKED, candidates)
    answer = _RANKING.format(count=count) if task == RANK else _CHOICE
    return f"{_GIVEN}\n\n{reason}{calls}\n\n{answer}"


def question(task: str) -> str:
    """The last line of the user's turn."""
    if task == RANK:
        return "Rank the candidates."
    likely = "MORE LIKELY" if task == MORE else "LESS LIKELY"
    return f"Which of the two did the user {likely} take next, A (1) or B (2)?"


def profile_question(words: int) -> str:
    """The last line of the user's turn where a profile of at most ``words`` words is asked for."""
    return _PROFILE.format(words=words)


def tools_section(tools: Sequence[Mapping[str, Any]]) -> str:
    """The part of the system turn that offers tools, in the words of Qwen3's template."""
    return _TOOLS.format(schemas="\n".join(json.dumps(s, ensure_ascii=False) for s in tools))


def function_schemas(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Schemas of a toolbox as chat templates take them in ``tools=``."""
    return [{"type": "function", "function": dict(tool)} for tool in tools]


@dataclasses.dataclass(frozen=True)
class ChatPrompts(PromptBuilder):
    """The style of a chat; the tokenizer is a ``ChatTokenizer``.

    ``observation_style`` is ``tool_response`` or ``observation``: the turns and tags that a tool's
    output comes in. ``agent`` is whose way of going on the policy is told: ReAct's of AgenticRec,
    or RecThinker's, analyze, plan and act.
    """

    observation_style: str = RESPONSE
    agent: str = AGENTICREC

    def build(self, history, candidates, tools, task=RANK):
        markup = self.tokenizer.encode_markup
        told = self.observation_style, self.agent
        system = instructions(task, len(candidates), bool(tools), *told)
        if tools:
            system += f"\n\n{tools_section(function_schemas(tools))}"
        ids = [*self.tokenizer.prefix, *markup(_turn("system", system))]
        ids += markup(f"{TURN_START}user\nTaken before, oldest first:\n")
        for place, item in enumerate(history, 1):
            ids += markup(f"h{place}.") + self._title(item)
        ids += markup("Candidates:\n")
        for number, item in enumerate(candidates, 1):
            ids += markup(f"{number}.") + self._title(item)
        return ids + markup(f"{question(task)}{TURN_END}\n{TURN_START}assistant\n")

    def profile(self, items, ratings, words):
        markup = self.tokenizer.encode_markup
        ids = [*self.tokenizer.prefix, *markup(_turn("system", PROFILER))]
        ids += markup(f"{TURN_START}user\nTaken, oldest first:\n")
        for place, (item, rating) in enumerate(zip(items, ratings, strict=True), 1):
            ids += markup(f"h{place}{rated(rating)}.") + self._title(item)
        end = f"{profile_question(words)}{TURN_END}\n{TURN_START}assistant\n"
        return ids + markup(end)

    def drill(self):
        text = _turn("user", question(RANK)) + f"{TURN_START}assistant\n"
        return [*self.tokenizer.prefix, *self.tokenizer.encode_markup(text)]

    def observation(self, text):
        before, after = f"\n<{INLINE}>\n", f"</{INLINE}>\n"
        if self.observation_style == RESPONSE:
            end = "" if self._paused_at_turn_end else TURN_END
            before = f"{end}\n{TURN_START}user\n<{RESPONSE}>\n"
            after = f"</{RESPONSE}>{TURN_END}\n{TURN_START}assistant\n"
        markup = self.tokenizer.encode_markup
        return [*markup(before), *self._observed(text, "\n"), *markup(after)]

    def written(self, text):
        ends = protocol.ANSWER_CLOSE
        if self._paused_at_turn_end:
            ends = ends, protocol.CALL_CLOSE
        return self.tokenizer.encode_markup(text + TURN_END if text.endswith(ends) else text)

    @property
    def _paused_at_turn_end(self) -> bool:
        return self.tokenizer.pause_id in self.tokenizer.stop_ids

    def _encode_title(self, title):
        return self.tokenizer.encode_line(" ".join(title.split()), self.title_tokens)


def _turn(role: str, text: str) -> str:
    return f"{TURN_START}{role}\n{text}{TURN_END}\n"
