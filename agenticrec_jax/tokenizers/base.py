"""Text and ids: what every tokenizer of a policy offers, and how data is made harmless.

A template is ours: the markers in it stand for themselves. Data is a title, an observation,
anything from a file or a tool: it never becomes a marker, and where it spells one that is visible.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

CUT = "…"
BROKEN = "\ufffd"  # what is left of a character whose last ids are missing
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"  # as chat templates spell them
_LITERALS = re.compile(
    r"<(/?(?:think|tools?|tool_call|tool_response|observation|answer|user|assistant"
    r"|\|[a-z0-9_]+\|))>",
    re.I,
)
_BRACKETS = str.maketrans({"<": "‹", ">": "›"})


class Tokenizer(Protocol):
    """What prompts, episodes and programs need of a policy's tokenizer.

    Attributes:
      file: name of the file it was read from.
      prompt_style: the style of prompts that its markers are made for, ``compact`` or ``chat``.
      vocab_size: one more than its highest id; the policy's embedding may have more rows.
      pad_id: fills rows of a batch, outside of every text.
      pause_id: a row waits for a tool after it.
      stop_ids: each ends what the policy writes. Where the end of a turn is also ``pause_id``, the
        turn's text says which of both it is.
    """

    file: str
    prompt_style: str
    vocab_size: int
    pad_id: int
    pause_id: int
    stop_ids: tuple[int, ...]

    def marker(self, name: str) -> int:
        """Id of a marker; KeyError if it is not one id."""
        ...

    def encode_data(self, text: str) -> list[int]:
        """Ids of text that comes from data or from a tool; never contains a marker's id."""
        ...

    def encode_markup(self, text: str) -> list[int]:
        """Ids of our own template text, in which markers stand for themselves."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids with markers spelled out."""
        ...

    def save(self, directory: str | Path) -> None:
        """Writes the tokenizer's files, as they were read, into an existing directory."""
        ...


class ChatTokenizer(Tokenizer, Protocol):
    """A tokenizer whose policy writes turns of a chat.

    Attributes:
      turn_end: ends a turn; ``<|im_end|>`` in a template stands for it.
      prefix: ids that every prompt begins with.
    """

    turn_end: int
    prefix: tuple[int, ...]

    def encode_line(self, text: str, budget: int) -> list[int]:
        """`` text`` and the end of its line, with ``…`` where more than ``budget`` ids are lost.

        The blank and the end of the line are encoded together with the text, as they would be in
        the whole prompt.
        """
        return encode_within(self, f" {text}", budget, "\n")


def encode_within(tokenizer: Tokenizer, text: str, budget: int, end: str = "") -> list[int]:
    """Ids of data and of ``end`` behind it, with ``…`` where more than ``budget`` ids are lost.

    A character of several ids that the budget cuts is lost whole.
    """
    ids = tokenizer.encode_data(text)
    if len(ids) <= budget:
        return tokenizer.encode_data(text + end)
    ids = ids[:budget]
    while ids and tokenizer.decode(ids).endswith(BROKEN):
        ids.pop()
    return ids + tokenizer.encode_data(CUT + end)


def neutralise(text: str, own: re.Pattern | None = None) -> str:
    """Makes marker literals in data visibly harmless: ``</think>`` becomes ``‹/think›``.

    ``own``, of ``literals``, matches a tokenizer's own tokens. Half of a surrogate pair, which no
    tokenizer can encode, becomes ``?``.
    """
    text = text.encode("utf-8", "replace").decode("utf-8")
    text = _LITERALS.sub(r"‹\1›", text)
    text = text.replace("\\boxed", "/boxed")
    return own.sub(lambda match: _harmless(match[0]), text) if own else text


def literals(names: Iterable[str]) -> re.Pattern | None:
    """A pattern for the tokens ``names``, longest first; blanks are no markup."""
    marks = sorted({name for name in names if name.strip()}, key=lambda name: (-len(name), name))
    return re.compile("|".join(map(re.escape, marks))) if marks else None


def _harmless(literal: str) -> str:
    changed = literal.translate(_BRACKETS)
    return changed if changed != literal else f"{literal[0]}·{literal[1:]}"


def join_at(text: str, mark: str, encode, index: int) -> list[int]:
    """Ids of a template by ``encode`` in which ``mark`` stands for the id ``index``."""
    first, *others = text.split(mark)
    ids = encode(first)
    for part in others:
        ids = [*ids, index, *encode(part)]
    return ids


def spellings(tokenizer: Tokenizer) -> list[str]:
    """What each id adds to a text; markers are spelled out, padding adds nothing.

    Part of a character is ``�``.
    """
    before = tokenizer.encode_markup("0")  # alone, a word could lose the blank before it
    start = len(tokenizer.decode(before))
    return [tokenizer.decode([*before, i])[start:] for i in range(tokenizer.vocab_size)]


def decode_around(
    ids: Sequence[int], decode: Callable[[list[int]], str], spelled: Callable[[int], str | None]
) -> str:
    """Text of ids: the words of ``spelled`` for those that have one, ``decode`` of runs between."""
    parts: list[str] = []
    run: list[int] = []
    for index in map(int, ids):
        if (word := spelled(index)) is None:
            run.append(index)
        else:
            parts += [decode(run), word]
            run = []
    return "".join([*parts, decode(run)])
