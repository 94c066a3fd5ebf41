"""The style of prompts that a policy's tokenizer is made for, or that the config asks for."""

from agenticrec_jax.agent.chat import INLINE, RESPONSE, ChatPrompts
from agenticrec_jax.agent.prompts import AGENTICREC, CompactPrompts, PromptBuilder
from agenticrec_jax.data.interactions import Items
from agenticrec_jax.errors import InputError
from agenticrec_jax.tokenizers.base import Tokenizer

AUTO = "auto"
STYLES = {"compact": (INLINE,), "chat": (RESPONSE, INLINE)}  # and their observations, default first


def make_prompts(
    tokenizer: Tokenizer,
    items: Items,
    title_tokens: int,
    style: str = AUTO,
    observation_style: str = AUTO,
    observation_tokens: int = 0,
    agent: str = AGENTICREC,
) -> PromptBuilder:
    """The builder of a style, ``auto`` for the tokenizer's own.

    ``observation_style`` is ``tool_response``, ``observation`` or ``auto`` for the style's own.
    ``agent`` is one of ``AGENTS``; the compact style, which explains nothing, is the same for all.

    Raises:
      InputError: if the tokenizer has not the markers of the style, or the style not these
        observations.
    """
    if style not in (AUTO, tokenizer.prompt_style):
        raise InputError(
            f"policy.prompt_style: found {style!r}, expected {AUTO} or {tokenizer.prompt_style}, "
            f"the style of the policy's {tokenizer.file}"
        )
    known = STYLES[tokenizer.prompt_style]
    observations = known[0] if observation_style == AUTO else observation_style
    if observations not in known:
        raise InputError(
            f"policy.observation_style: found {observations!r}, expected {AUTO} or one of "
            f"{', '.join(known)} in the {tokenizer.prompt_style} style"
        )
    budgets = title_tokens, observation_tokens
    if tokenizer.prompt_style == "compact":
        return CompactPrompts(tokenizer, items, *budgets)
    if observations == INLINE and tokenizer.pause_id in tokenizer.stop_ids:
        raise InputError(
            f"policy.observation_style: found {INLINE!r}, expected {RESPONSE}: </tool_call> is not "
            f"one id in {tokenizer.file}, so that a call ends the turn that its output would be in"
        )
    return ChatPrompts(tokenizer, items, *budgets, observations, agent)
