"""Chats, and the interface of a model that completes them: a policy directory or an endpoint."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

SYSTEM = "system"
USER = "user"
ASSISTANT = "assistant"

OnText = Callable[[int, str], None]
"""(index of the chat, text that completes it), called as each one ends, in any order."""


@dataclass(frozen=True)
class Chat:
    """A conversation whose next turn is the assistant's.

    Attributes:
      key: numbers from 0 to 2**32 - 1 that name the chat, such as example and round; as many in
        every chat of a call. The randomness of a completion depends on them.
      turns: (role, text) pairs, oldest first. Texts are data: none of them can spell a marker.
    """

    key: tuple[int, ...]
    turns: tuple[tuple[str, str], ...]

    def then(self, *turns: tuple[str, str], key: tuple[int, ...]) -> "Chat":
        """Returns the chat with more turns and another key."""
        return replace(self, key=key, turns=(*self.turns, *turns))


@dataclass(frozen=True)
class Decoding:
    """Decoding of a completion.

    Attributes:
      temperature: 0 is greedy.
      max_tokens: most tokens of a completion.
    """

    temperature: float
    max_tokens: int


class Completer(Protocol):
    """Interface of a model that completes chats.

    A method of ranking knows nothing else of its model.

    Attributes:
      identity: names the model and its seed. Completions of one chat by completers of one identity
        can stand for each other.
    """

    identity: str

    def complete(
        self, chats: Sequence[Chat], decoding: Decoding, on_text: OnText | None = None
    ) -> list[str]:
        """Returns the text of the assistant's next turn in each chat.

        Args:
          chats: to be completed.
          decoding: of all completions.
          on_text: called in the thread of this call as each completion ends; None for no call.

        Raises:
          InputError: the model cannot be reached, or a chat does not fit it.
        """
        ...
