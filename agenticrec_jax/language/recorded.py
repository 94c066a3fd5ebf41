"""Completions in a file, so that an interrupted evaluation asks for none of them again."""

import hashlib
import json
import os
from collections.abc import Sequence

from agenticrec_jax import strict_json
from agenticrec_jax.errors import InputError
from agenticrec_jax.language.completion import Chat, Completer, Decoding, OnText
from agenticrec_jax.paths import Appender, Path, write_whole


class Recorded:
    """A completer that writes each completion to a file, and reads the ones that are there.

    A completion is found again by the model with its seed, the decoding and the whole chat. Another
    prompt, model or temperature is thus a new completion, in the same file. Methods are functions
    of their completions, so one that runs again continues where it was stopped.

    Args:
      completer: completes chats that are not in the file.
      path: of the file of JSON lines, which is made; its directory must be there.

    Attributes:
      identity: of the completer.
      read: completions of the last call that were in the file.

    Raises:
      InputError: a line of the file is no completion. A last line without its end, as a killed run
        leaves it, is dropped.
    """

    def __init__(self, completer: Completer, path: str | os.PathLike):
        self.identity = completer.identity
        self.read = 0
        self._completer = completer
        self._path = Path(path)
        self._texts = _read(self._path)

    def complete(
        self, chats: Sequence[Chat], decoding: Decoding, on_text: OnText | None = None
    ) -> list[str]:
        """Returns the text of the assistant's next turn in each chat; see `Completer`."""
        hashes = [self._hash(chat, decoding) for chat in chats]
        missing = [i for i, each in enumerate(hashes) if each not in self._texts]
        self.read = len(chats) - len(missing)
        for i in sorted(set(range(len(chats))) - set(missing)):
            if on_text:
                on_text(i, self._texts[hashes[i]])
        if missing:
            with Appender(self._path) as file:

                def ended(row: int, text: str) -> None:
                    i = missing[row]
                    line = {"chat": hashes[i], "key": list(chats[i].key), "text": text}
                    file.write(strict_json.dumps(line, ensure_ascii=False) + "\n")
                    self._texts[hashes[i]] = strict_json.without_halves(text)
                    if on_text:
                        on_text(i, text)

                self._completer.complete([chats[i] for i in missing], decoding, ended)
        return [self._texts[each] for each in hashes]

    def _hash(self, chat: Chat, decoding: Decoding) -> str:
        facts = [self.identity, decoding.temperature, decoding.max_tokens, chat.key, chat.turns]
        return hashlib.sha256(strict_json.dumps(facts).encode()).hexdigest()[:32]


def _read(path: Path) -> dict[str, str]:
    """Returns the completions of a file by their chats' hashes; cuts off a half line at its end."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        write_whole(path, whole)
    texts = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            record = json.loads(line)
            chat, text = record["chat"], record["text"]
        except (ValueError, KeyError, TypeError, RecursionError):
            chat = text = None
        if not isinstance(chat, str) or not isinstance(text, str):
            raise InputError(
                f"{path}, line {number}: found {line[:80]!r}, expected a completion with chat and "
                "text"
            )
        texts[chat] = text
    return texts
