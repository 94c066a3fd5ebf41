"""The tokenizer of a policy directory, and the compact one whose markers no text can spell.

The compact tokenizer is a sentencepiece model. Markers of the protocol are *control symbols* of it:
they have an id, and encoding text never produces it, whatever the text is. Templates of ours name
them, data cannot. The numbers 1 to 20, alone and with the comma that follows them in a list, and a
few fixed pieces of the protocol are user-defined symbols, one id each.
"""

import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from agenticrec_jax.errors import InputError
from agenticrec_jax.models.io.safetensors import read_json
from agenticrec_jax.tokenizers import huggingface as hf_tokenizer
from agenticrec_jax.tokenizers.base import CUT, Tokenizer, decode_around, neutralise
from agenticrec_jax.tokenizers.huggingface import read_hf_tokenizer
from agenticrec_jax.tokenizers.sentencepiece import FILE, PlainTokenizer

PAD = "<pad>"
MARKERS = (
    "<user>",
    "<assistant>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<observation>",
    "</observation>",
    "<answer>",
    "</answer>",
    "\\boxed{[",
    "\\boxed{",
    "]}",
    "A",
    "B",
)
NUMBERS = tuple(str(n) for n in range(1, 21))
LISTED = tuple(f"{n}," for n in NUMBERS)  # a number in a list: copying a list copies one id each


class CompactTokenizer(Tokenizer):
    """Ids of text and markers; a row pauses at ``</tool_call>`` and ends at ``</answer>``."""

    file = FILE
    prompt_style = "compact"

    def __init__(self, model: bytes):
        self._model = model
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._markers = {name: self._pieces.piece_to_id(name) for name in MARKERS}
        self._split = re.compile("(" + "|".join(map(re.escape, MARKERS)) + ")")
        self.pad_id = self._pieces.pad_id()
        self._spelled = {i: name for name, i in self._markers.items()} | {self.pad_id: ""}
        self.vocab_size = self._pieces.vocab_size()
        self.pause_id = self._markers["</tool_call>"]
        self.stop_ids = (self._markers["</answer>"],)

    def marker(self, name: str) -> int:
        """Id of a marker. Raises KeyError for a name that is not in ``MARKERS``."""
        return self._markers[name]

    def encode_data(self, text: str) -> list[int]:
        """Ids of text that comes from data or from a tool; never contains a marker's id."""
        return self._pieces.encode(neutralise(text))

    def encode_markup(self, text: str) -> list[int]:
        """Ids of our own template text, in which markers stand for themselves."""
        ids: list[int] = []
        for part in self._split.split(text):
            ids += [self._markers[part]] if part in self._markers else self._pieces.encode(part)
        return ids

    def encode_cut(self, text: str, budget: int) -> list[int]:
        """At most ``budget`` ids of data and, where text is lost, the visible mark ``…``."""
        ids = self.encode_data(text)
        return ids if len(ids) <= budget else ids[:budget] + self._pieces.encode(CUT)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids with markers spelled out; padding disappears."""
        return decode_around(ids, self._pieces.decode, self._spelled.get)

    def save(self, directory: str | Path) -> None:
        """Writes ``tokenizer.model`` into an existing directory."""
        (Path(directory) / FILE).write_bytes(self._model)


def train_tokenizer(
    lines: Iterable[str], vocab_size: int, symbols: Sequence[str]
) -> CompactTokenizer:
    """Fits a byte-fallback unigram model (Kudo 2018) on ``lines``, deterministically.

    ``symbols`` are literal strings that get one id each, beside the numbers 1 to 20.
    """
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=out,
        vocab_size=vocab_size,
        model_type="unigram",
        hard_vocab_limit=False,  # a small corpus may not fill the vocabulary
        byte_fallback=True,
        character_coverage=0.9995,
        normalization_rule_name="nmt_nfkc_cf",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,  # a leading space is part of a word
        control_symbols=list(MARKERS),
        user_defined_symbols=[*NUMBERS, *LISTED, CUT, *symbols],
        pad_id=0,
        pad_piece=PAD,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return CompactTokenizer(out.getvalue())


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """The tokenizer of a policy directory.

    ``tokenizer.json`` if it is byte-level BPE, else ``tokenizer.model``: a compact one, or a
    sentencepiece model without our markers.

    Raises:
      InputError: if neither is there, or what is there is no such tokenizer; names the file.
    """
    json_path, path = Path(directory) / hf_tokenizer.FILE, Path(directory) / FILE
    if json_path.is_file():
        raw = read_json(json_path)
        if hf_tokenizer.is_byte_level(raw):
            return read_hf_tokenizer(directory)
        if not path.is_file():
            kind = (raw.get("model") or {}).get("type")
            raise InputError(
                f"{json_path}: found a tokenizer of type {kind} that is not byte-level BPE, "
                f"expected one that is, or a {FILE} beside it"
            )
    if not path.is_file():
        raise InputError(f"{path}: file not found, expected it or a {hf_tokenizer.FILE} beside it")
    return _sentencepiece_tokenizer(path)


def _sentencepiece_tokenizer(path: Path) -> Tokenizer:
    model = path.read_bytes()
    pieces = sentencepiece.SentencePieceProcessor()
    try:
        pieces.LoadFromSerializedProto(model)
    except RuntimeError:
        raise InputError(f"{path}: found no sentencepiece model, expected one") from None
    compact = all(pieces.IsControl(pieces.piece_to_id(name)) for name in MARKERS)
    return CompactTokenizer(model) if compact else PlainTokenizer(model, str(path))
