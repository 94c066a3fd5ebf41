"""The compact domain tokenizer: a sentencepiece model whose markers no text can spell.

Markers of the protocol are sentencepiece *control symbols*: they have an id, and encoding text
never produces it, whatever the text is. Templates of ours name them, data cannot. The numbers 1 to
20, alone and with the comma that follows them in a list, and a few fixed pieces of the protocol
are user-defined symbols, one id each.
"""

import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from agenticrec_jax.errors import InputError

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
CUT = "…"
_MODEL_FILE = "tokenizer.model"
_LITERALS = re.compile(
    r"<(/?(?:think|tool_call|tool_response|observation|answer|user|assistant|\|[a-z_]+\|))>", re.I
)


def neutralise(text: str) -> str:
    """Makes marker literals in data visibly harmless: ``</think>`` becomes ``‹/think›``."""
    text = _LITERALS.sub(r"‹\1›", text)
    return text.replace("\\boxed", "/boxed")


class CompactTokenizer:
    """Ids of text and markers; ``pad_id`` fills, and is never part of a text."""

    def __init__(self, model: bytes):
        self._model = model
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._markers = {name: self._pieces.piece_to_id(name) for name in MARKERS}
        self._names = {index: name for name, index in self._markers.items()}
        self._split = re.compile("(" + "|".join(map(re.escape, MARKERS)) + ")")
        self.pad_id = self._pieces.pad_id()
        self.vocab_size = self._pieces.vocab_size()

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
        parts: list[str] = []
        run: list[int] = []
        for index in map(int, ids):
            if index in self._names or index == self.pad_id:
                parts += [self._pieces.decode(run), self._names.get(index, "")]
                run = []
            else:
                run.append(index)
        return "".join([*parts, self._pieces.decode(run)])

    def save(self, directory: str | Path) -> None:
        """Writes ``tokenizer.model`` into an existing directory."""
        (Path(directory) / _MODEL_FILE).write_bytes(self._model)


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


def load_tokenizer(directory: str | Path) -> CompactTokenizer:
    """Reads ``tokenizer.model`` of a policy directory; InputError when it is missing."""
    path = Path(directory) / _MODEL_FILE
    if not path.is_file():
        raise InputError(f"{path}: file not found, expected a sentencepiece model of the policy")
    return CompactTokenizer(path.read_bytes())
