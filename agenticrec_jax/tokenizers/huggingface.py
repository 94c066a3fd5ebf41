"""The tokenizer of a Hugging Face directory: byte-level BPE with added tokens, as Qwen3 has it.

One ``tokenizer.json`` makes two tokenizers: one with its added tokens, for our templates, and one
stripped of them all, for data. Disabling *special* tokens would not be enough: ``</tool_call>`` of
Qwen3 is an added token that is not flagged special, and text that spells it would become its id.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from agenticrec_jax import strict_json
from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.tokenizers.base import TURN_END, ChatTokenizer, join_at, literals, neutralize

FILE = "tokenizer.json"
_CONFIG = "tokenizer_config.json"
_FILES = (
    FILE,
    _CONFIG,
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
_TEXT_END = "<|endoftext|>"
_CALL_CLOSE = "</tool_call>"


def is_byte_level(raw: Mapping[str, Any]) -> bool:
    """Whether the contents of a ``tokenizer.json`` are byte-level BPE: any text, and no prefix."""
    decoder = raw.get("decoder") or {}
    kinds = {step.get("type") for step in (decoder, *decoder.get("decoders", ()))}
    return (raw.get("model") or {}).get("type") == "BPE" and "ByteLevel" in kinds


class HFTokenizer(ChatTokenizer):
    """Tokenizer of text and added tokens.

    A turn ends at ``<|im_end|>`` if there is one, else at the configured end of text. A row pauses
    at ``</tool_call>`` if that is one id, else at the end of its turn.
    """

    file = FILE
    prompt_style = "chat"

    def __init__(self, files: Mapping[str, bytes], source: str = FILE):
        """Builds both tokenizers.

        Args:
          files: contents of the directory's files by name.
          source: path of ``tokenizer.json``, for errors.

        Raises:
          InputError: the file holds no tokenizer, or none with an end of a turn.
        """
        self._files = dict(files)
        raw = _object(files[FILE], source)
        self._added = {token["content"]: token["id"] for token in raw.get("added_tokens", ())}
        self._full = _built(files[FILE], source)
        self._data = _built(strict_json.dumps(stripped(raw), ensure_ascii=False).encode(), source)
        self._literals = literals(self._added)
        self._broken = self._data.encode("\ufffd").ids
        self.vocab_size = 1 + max(self._full.get_vocab(with_added_tokens=True).values())
        self.prefix = tuple(self._full.encode("").ids)
        self._name_roles(_object(files.get(_CONFIG, b"{}"), source), source)

    def _name_roles(self, config: Mapping[str, Any], source: str) -> None:
        end = _token(config, "eos_token")
        pad = _token(config, "pad_token")
        names = [n for n in dict.fromkeys((TURN_END, end, _TEXT_END)) if n in self._added]
        expected = f"an added token, or {TURN_END} among them"
        expect(bool(names), f"{source}: eos_token, which ends a turn", end, expected)
        self.stop_ids = tuple(self._added[name] for name in names)
        self.turn_end = self.stop_ids[0]
        self.pause_id = self._added.get(_CALL_CLOSE, self.turn_end)
        self.pad_id = self._added.get(pad, self.stop_ids[-1])

    @property
    def added_tokens(self) -> dict[str, int]:
        """Ids of all added tokens, special or not, by their text."""
        return dict(self._added)

    def marker(self, name: str) -> int:
        """Returns the id of an added token; KeyError for any other name."""
        return self._added[name]

    def encode_data(self, text: str) -> list[int]:
        """Returns ids of text from data or from a tool, never an added token's id."""
        return self._data.encode(neutralize(text, self._literals), add_special_tokens=False).ids

    def encode_markup(self, text: str) -> list[int]:
        """Returns ids of our own template text, in which added tokens stand for themselves."""
        return join_at(text, TURN_END, self._template, self.turn_end)

    def _template(self, text: str) -> list[int]:
        return self._full.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids with added tokens spelled out.

        An id beyond the vocabulary, which the policy's embedding may have a row for, is ``�``.
        """
        in_vocabulary = []
        for index in map(int, ids):
            in_vocabulary += [index] if index < self.vocab_size else self._broken
        return self._full.decode(in_vocabulary, skip_special_tokens=False)

    def save(self, directory: str | Path) -> None:
        """Writes the tokenizer's files, as they were read, into an existing directory."""
        for name, content in self._files.items():
            (Path(directory) / name).write_bytes(content)


def stripped(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the contents of a ``tokenizer.json`` without any added token.

    It splits other text as before.
    """
    added = {token["content"] for token in raw.get("added_tokens", ())}
    model = dict(raw["model"])
    model["vocab"] = {piece: i for piece, i in model["vocab"].items() if piece not in added}
    if model.get("unk_token") in added:
        model["unk_token"] = None
    return {**raw, "model": model, "added_tokens": [], "post_processor": None}


def read_hf_tokenizer(directory: str | Path) -> HFTokenizer:
    """Reads ``tokenizer.json`` of a directory and the files that belong to it.

    Raises:
      InputError: it is missing or holds no byte-level BPE tokenizer.
    """
    paths = [Path(directory) / name for name in _FILES]
    files = {path.name: path.read_bytes() for path in paths if path.is_file()}
    return HFTokenizer(files, str(paths[0]))


def _object(content: bytes, source: str) -> dict[str, Any]:
    try:
        raw = json.loads(content)
    except ValueError as error:
        raise InputError(f"{source}: found no JSON ({error}), expected a tokenizer") from None
    expect(isinstance(raw, dict), source, type(raw).__name__, "a JSON object")
    return raw


def _built(content: bytes, source: str) -> tokenizers.Tokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises nothing narrower
        raise InputError(f"{source}: found no tokenizer that can be read ({error})") from None
    # The file may ask for both, and either would change the ids of a prompt.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _token(config: Mapping[str, Any], role: str) -> str | None:
    """Returns the text of a role's token in ``tokenizer_config.json``.

    It is written there as text or as an object with the text as its ``content``.
    """
    token = config.get(role)
    return token.get("content") if isinstance(token, dict) else token
