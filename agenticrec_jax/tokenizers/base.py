"""The interface of a policy's tokenizers, and the neutralizing of data.

A template is ours: markers in it stand for themselves. Data is anything from a file or a tool, such
as a title or an observation. It never becomes a marker, and where it spells one the text is changed
visibly.
"""

import functools
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

CUT = "…"
BROKEN = "\ufffd"  # the rest of a character whose last ids are missing
TURN_START = "<|im_start|>"  # as chat templates spell it
TURN_END = "<|im_end|>"
_LITERALS = re.compile(
    r"<(/?(?:think|tools?|tool_call|tool_response|observation|answer|user|assistant"
    r"|\|[a-z0-9_]+\|))>",
    re.I,
)
_BRACKETS = str.maketrans({"<": "‹", ">": "›"})


class Tokenizer(Protocol):
    """Interface of a policy's tokenizer for prompts, episodes and programs.

    Attributes:
      file: name of the file that it was read from.
      prompt_style: the style of prompts that its markers are made for, ``compact`` or ``chat``.
      vocab_size: its highest id plus one; the policy's embedding may have more rows.
      pad_id: fills rows of a batch outside of every text.
      pause_id: a row pauses after it for a tool.
      stop_ids: each ends a completion. Where the end of a turn is also ``pause_id``, the turn's
        text decides which of the two it is.
    """

    file: str
    prompt_style: str
    vocab_size: int
    pad_id: int
    pause_id: int
    stop_ids: tuple[int, ...]

    def marker(self, name: str) -> int:
        """Returns the id of a marker; KeyError if it is not one id."""
        ...

    def encode_data(self, text: str) -> list[int]:
        """Returns ids of text from data or from a tool, never a marker's id."""
        ...

    def encode_markup(self, text: str) -> list[int]:
        """Returns ids of our own template text, in which markers stand for themselves."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids with markers spelled out."""
        ...

    def save(self, directory: str | os.PathLike) -> None:
        """Writes the tokenizer's files, as they were read, into an existing directory."""
        ...


class ChatTokenizer(Tokenizer, Protocol):
    """Interface of the tokenizer of a policy that writes turns of a chat.

    Attributes:
      turn_end: ends a turn; ``<|im_end|>`` in a template stands for it.
      prefix: the ids at the start of every prompt.
    """

    turn_end: int
    prefix: tuple[int, ...]

    def encode_line(self, text: str, budget: int) -> list[int]:
        """Returns ids of `` text`` and a line break, cut to ``budget`` ids with a visible ``…``.

        The blank and the line break are encoded together with the text, as they would be in the
        whole prompt.
        """
        return encode_within(self, f" {text}", budget, "\n")


def encode_within(tokenizer: Tokenizer, text: str, budget: int, end: str = "") -> list[int]:
    """Returns ids of data and of ``end`` after it, cut to ``budget`` ids of data with a ``…``.

    A character of several ids that the budget would split is dropped whole.
    """
    ids = tokenizer.encode_data(text)
    if len(ids) <= budget:
        return tokenizer.encode_data(text + end)
    ids = ids[:budget]
    while ids and tokenizer.decode(ids).endswith(BROKEN):
        ids.pop()
    return ids + tokenizer.encode_data(CUT + end)


def neutralize(text: str, tokens: re.Pattern | None = None) -> str:
    """Makes marker literals in data visibly harmless: ``</think>`` becomes ``‹/think›``.

    Half of a surrogate pair, which no tokenizer can encode, becomes ``?``.

    Args:
      text: from data or a tool.
      tokens: matches further tokens of a tokenizer, see ``literals``.
    """
    text = text.encode("utf-8", "replace").decode("utf-8")
    text = _LITERALS.sub(r"‹\1›", text)
    text = text.replace("\\boxed", "/boxed")
    return tokens.sub(lambda match: _harmless(match[0]), text) if tokens else text


def literals(names: Iterable[str]) -> re.Pattern | None:
    """Returns a pattern that matches the tokens ``names``, longest first; None without any.

    Tokens of blanks are left out: they are no markup.
    """
    marks = sorted({name for name in names if name.strip()}, key=lambda name: (-len(name), name))
    return re.compile("|".join(map(re.escape, marks))) if marks else None


def _harmless(literal: str) -> str:
    """Returns ``‹s›`` for ``<s>`` and ``[·INST]`` for ``[INST]``."""
    changed = literal.translate(_BRACKETS)
    return changed if changed != literal else f"{literal[0]}·{literal[1:]}"


def join_at(text: str, mark: str, encode: Callable[[str], list[int]], index: int) -> list[int]:
    """Returns the ids of a template by ``encode``; ``mark`` in it stands for the id ``index``."""
    first, *others = text.split(mark)
    ids = encode(first)
    for other in others:
        ids = [*ids, index, *encode(other)]
    return ids


def spellings(tokenizer: Tokenizer) -> list[str]:
    """Returns the text that each id adds: markers spelled out, nothing for padding.

    An incomplete character is ``�``.
    """
    # Decoded alone, a word could lose the blank before it.
    before = tokenizer.encode_markup("0")
    start = len(tokenizer.decode(before))
    return [tokenizer.decode([*before, i])[start:] for i in range(tokenizer.vocab_size)]


def spelling_of(tokenizer: Tokenizer) -> Callable[[int], str]:
    """Returns a function from one id to its text, which may lack a blank before it."""
    return functools.cache(lambda token: tokenizer.decode([token]))


def decode_around(
    ids: Sequence[int], decode: Callable[[list[int]], str], spelled: Callable[[int], str | None]
) -> str:
    """Returns the text of ids: ``spelled`` of an id where it is not None, ``decode`` of the rest.

    ``decode`` is given whole runs, because a character may take several ids.
    """
    texts: list[str] = []
    run: list[int] = []
    for index in map(int, ids):
        if (word := spelled(index)) is None:
            run.append(index)
        else:
            texts += [decode(run), word]
            run = []
    return "".join([*texts, decode(run)])
