"""Completers that tests know everything of."""

import json
import re
from collections.abc import Callable, Sequence

from agenticrec_jax.language.completion import Chat


class Fake:
    """Completes each chat by a function of it, and keeps the chats."""

    identity = "fake"

    def __init__(self, text: Callable[[Chat], str]):
        self._text = text
        self.chats: list[Chat] = []

    def complete(self, chats: Sequence[Chat], decoding, on_text=None) -> list[str]:
        self.chats += chats
        self.decoding = decoding
        texts = [self._text(chat) for chat in chats]
        for i in reversed(range(len(texts))):  # in another order than they were asked for
            if on_text:
                on_text(i, texts[i])
        return texts


def listed_candidates(chat: Chat) -> dict[int, str]:
    """The titles of the candidates by their numbers, as the prompt of a chat lists them."""
    question = next(text for role, text in chat.turns if role == "user")
    block = question[question.index("andidates") :]
    return {int(n): title for n, title in re.findall(r"^(\d+)\. (.*)$", block, re.M)}


def planned(*steps) -> str:
    """A plan of (tool, input) pairs, as a model should write it."""
    return json.dumps([{"tool": tool, "input": value} for tool, value in steps])
