"""The tokenizer of a Hugging Face directory: byte-level BPE with added tokens, as Qwen3 has it.

One ``tokenizer.json`` makes two tokenizers: one with its added tokens, for our templates, and one
stripped of them all, for data. Disabling *special* tokens would not be enough: ``</tool_call>`` of
Qwen3 is an added token that is not flagged special, and text that spells it would become its id.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tokenizers

from agenticrec_jax import strict_json
from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.paths import Path, is_there, require_file
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
_BROKEN = "\ufffd"  # three bytes in UTF-8
_STEPS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_CHANGING = {  # options of BPE that no byte-level tokenizer needs
    "end_of_word_suffix": "the ids do not spell the text",
    "continuing_subword_prefix": "the ids do not spell the text",
    "dropout": "a text has other ids each time",
}
_TRIED = 2000  # ids whose text is encoded before a tokenizer is taken


def is_byte_level(raw: Mapping[str, Any]) -> bool:
    """Whether the contents of a ``tokenizer.json`` are byte-level BPE: any text, and no prefix."""
    decoder = raw.get("decoder")
    steps = decoder.get("decoders") if isinstance(decoder, dict) else None
    kinds = [kind_of(step) for step in (decoder, *(steps if isinstance(steps, list) else ()))]
    return kind_of(raw.get("model")) == "BPE" and "ByteLevel" in kinds


def kind_of(step: Any) -> Any:
    """Returns the ``type`` of a part of a ``tokenizer.json``, None for what is no object."""
    return step.get("type") if isinstance(step, dict) else None


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
          InputError: the file holds no byte-level BPE tokenizer, or none with an end of a turn; a
            field is of another type.
        """
        self._files = dict(files)
        raw = _object(files.get(FILE, b""), source)
        expect(is_byte_level(raw), source, kind_of(raw.get("model")), "byte-level BPE")
        for name in _STEPS:
            step = raw.get(name)
            expect(step is None or isinstance(step, dict), f"{source}: {name}", step, "an object")
        for name, why in _CHANGING.items():
            value = raw["model"].get(name)
            expect(not value, f"{source}: model.{name}", value, f"none: with it {why}")
        self._added = _added_tokens(raw, source)
        self._full = _built(files[FILE], source)
        self._data = _built(strict_json.dumps(stripped(raw), ensure_ascii=False).encode(), source)
        self._literals = literals(self._added)
        vocabulary = self._full.get_vocab(with_added_tokens=True)
        self.vocab_size = 1 + max(vocabulary.values())
        with _library(source):
            self.prefix = tuple(self._full.encode("").ids)
            self._broken = self._data.encode(_BROKEN).ids
            whole = self._data.decode(self._broken) == _BROKEN
            for tokenizer in (self._full, self._data):  # some files fail only here
                tokenizer.encode(tokenizer.decode(range(min(self.vocab_size, _TRIED))))
        expect(whole, f"{source}: model", "lost bytes of text", "pieces for every byte of text")
        self._check_ids(vocabulary, source)
        config_source = str(Path(source).with_name(_CONFIG))
        self._name_roles(_object(files.get(_CONFIG, b"{}"), config_source), source, config_source)

    def _check_ids(self, vocabulary: Mapping[str, int], source: str) -> None:
        """Refuses ids that differ from the library's, which takes others than the file's."""
        for name, index in self._added.items():
            used = vocabulary.get(name)
            expect(used == index, f"{source}: added_tokens: id of {name}", index, f"{used}")
        ids = len(set(vocabulary.values()))
        expect(ids == len(vocabulary), f"{source}: different ids", ids, f"{len(vocabulary)}")
        outside = [index for index in self.prefix if index >= self.vocab_size]
        expected = f"ids below {self.vocab_size}"
        expect(not outside, f"{source}: post_processor", outside, expected)

    def _name_roles(self, config: Mapping[str, Any], source: str, config_source: str) -> None:
        end, pad = (_token(config, role, config_source) for role in ("eos_token", "pad_token"))
        vocabulary = self._full.get_vocab()  # `token_to_id` cannot take half of a surrogate pair
        for role, name in (("eos_token", end), ("pad_token", pad)):
            is_known = name is None or name in vocabulary
            expect(is_known, f"{config_source}: {role}", name, f"a token of {source}")
        names = [n for n in dict.fromkeys((TURN_END, end, _TEXT_END)) if n in self._added]
        expected = f"an added token, or {TURN_END} among them"
        expect(bool(names), f"{source}: eos_token, which ends a turn", end, expected)
        self.stop_ids = tuple(self._added[name] for name in names)
        self.turn_end = self.stop_ids[0]
        self.pause_id = self._added.get(_CALL_CLOSE, self.turn_end)
        self.pad_id = self.stop_ids[-1] if pad is None else vocabulary[pad]

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

    def save(self, directory: str | os.PathLike) -> None:
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


def read_hf_tokenizer(directory: str | os.PathLike) -> HFTokenizer:
    """Reads ``tokenizer.json`` of a directory and the files that belong to it.

    Raises:
      InputError: it is missing or holds no byte-level BPE tokenizer, or a field of it or of
        ``tokenizer_config.json`` is of another type.
    """
    paths = [Path(directory) / name for name in _FILES]
    present = [path for path in paths if path == paths[0] or is_there(path)]
    for path in present:
        require_file(path, "a file of a tokenizer")
    files = {path.name: path.read_bytes() for path in present}
    return HFTokenizer(files, str(paths[0]))


def _object(content: bytes, source: str) -> dict[str, Any]:
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source}: found no JSON ({error}), expected a tokenizer") from None
    expect(isinstance(raw, dict), source, type(raw).__name__, "a JSON object")
    return raw


def _added_tokens(raw: Mapping[str, Any], source: str) -> dict[str, int]:
    """Returns the ids of the added tokens by their text; InputError if a field is of another type.

    A tokenizer without any may lack the list.
    """
    tokens = raw.get("added_tokens", [])
    expect(isinstance(tokens, list), f"{source}: added_tokens", tokens, "a list")
    for i, token in enumerate(tokens):
        where = f"{source}: added_tokens[{i}]"
        expect(isinstance(token, dict), where, token, "an object")
        name, index = token.get("content"), token.get("id")
        expect(isinstance(name, str) and name, f"{where}.content", name, "text")
        expect(type(index) is int and index >= 0, f"{where}.id", index, "a whole number")
    return {token["content"]: token["id"] for token in tokens}


@contextlib.contextmanager
def _library(source: str) -> Iterator[None]:
    """Turns what the tokenizers library raises into `InputError`."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    # A panic of its Rust code is no Exception, and errors are of no narrower class.
    except BaseException as error:
        raise InputError(f"{source}: found no tokenizer that can be read ({error})") from None


def _built(content: bytes, source: str) -> tokenizers.Tokenizer:
    with _library(source):
        tokenizer = tokenizers.Tokenizer.from_buffer(content)
        # The file may ask for both, and either would change the ids of a prompt.
        tokenizer.no_truncation()
        tokenizer.no_padding()
    return tokenizer


def _token(config: Mapping[str, Any], role: str, source: str) -> str | None:
    """Returns the text of a role's token in ``tokenizer_config.json``, None without one.

    It is written there as text or as an object with the text as its ``content``.

    Raises:
      InputError: the field is of another type.
    """
    token = config.get(role)
    name = token.get("content", token) if isinstance(token, dict) else token
    is_token = token is None or isinstance(name, str)
    expect(is_token, f"{source}: {role}", token, "text, or an object with text as its content")
    return name
