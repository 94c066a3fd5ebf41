"""Text of prompts in the format of a chat, in the words of Qwen3's chat template.

`agenticrec_jax.agent.prompts.ChatPrompts` makes token ids of it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from agenticrec_jax import strict_json
from agenticrec_jax.agent import protocol
from agenticrec_jax.agent.tasks import MORE, RANK
from agenticrec_jax.tokenizers.base import TURN_END, TURN_START

AGENTICREC = "agenticrec"
RECTHINKER = "recthinker"
AGENTS = (AGENTICREC, RECTHINKER)
RESPONSE = "tool_response"  # a user turn, the format that Qwen3 was trained on
INLINE = "observation"  # inside the turn of the policy, as in the paper

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
APPROACHES = {AGENTICREC: _REACT, RECTHINKER: _INVESTIGATE}  # instructions for the reasoning
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

PROFILER = (  # the system turn of a request for a profile
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
    """Returns the system turn before its tools: the task, how to reason, the format of the answer.

    Args:
      task: one of `agenticrec_jax.agent.tasks.TASKS`.
      candidates: how many candidates the prompt has.
      tools: whether tools may be called. Without them every agent has AgenticRec's instructions.
      mark: name of the tags around a tool's output.
      agent: one of ``AGENTS``, whose instructions for the reasoning are used.
    """
    reason = APPROACHES[agent if tools else AGENTICREC]
    calls = f" {_CALLS.format(mark=mark)}" if tools else ""
    count = min(protocol.RANKED, candidates)
    answer = _RANKING.format(count=count) if task == RANK else _CHOICE
    return f"{_GIVEN}\n\n{reason}{calls}\n\n{answer}"


def question(task: str) -> str:
    """Returns the last line of the user turn: the question of ``task``."""
    if task == RANK:
        return "Rank the candidates."
    likely = "MORE LIKELY" if task == MORE else "LESS LIKELY"
    return f"Which of the two did the user {likely} take next, A (1) or B (2)?"


def profile_question(words: int) -> str:
    """Returns the last line of the user turn that requests a profile of at most ``words`` words."""
    return _PROFILE.format(words=words)


def tools_section(tools: Sequence[Mapping[str, Any]]) -> str:
    """Returns the section of the system turn that lists the tools, as Qwen3's template has it."""
    return _TOOLS.format(schemas="\n".join(strict_json.dumps(s, ensure_ascii=False) for s in tools))


def function_schemas(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the schemas of a toolbox in the form that chat templates take as ``tools=``."""
    return [{"type": "function", "function": dict(tool)} for tool in tools]


def turn(role: str, text: str) -> str:
    """Returns one whole turn of ``role``."""
    return f"{TURN_START}{role}\n{text}{TURN_END}\n"
