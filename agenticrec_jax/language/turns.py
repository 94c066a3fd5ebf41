"""Turns of a prompt as ids: their starts and ends in the style of a policy's tokenizer."""

from agenticrec_jax.tokenizers.base import TURN_END, TURN_START, Tokenizer


def user_turn(tokenizer: Tokenizer) -> list[int]:
    """Returns the ids at the start of a prompt, up to the user's text."""
    if tokenizer.prompt_style == "compact":
        return [tokenizer.marker("<user>")]
    return [*tokenizer.prefix, *tokenizer.encode_markup(f"{TURN_START}user\n")]


def assistant_turn(tokenizer: Tokenizer) -> list[int]:
    """Returns the ids between the user's text and the assistant's."""
    if tokenizer.prompt_style == "compact":
        return [tokenizer.marker("<assistant>")]
    end = tokenizer.encode_markup(f"{TURN_END}\n")
    return [*end, *tokenizer.encode_markup(f"{TURN_START}assistant\n")]
