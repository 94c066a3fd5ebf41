"""The compact tokenizer, whose markers no text can spell.

It is a sentencepiece model. The markers of the protocol are its *control symbols*: they have an id,
and encoding never returns that id, whatever the text is. Our templates name markers, data cannot.
The numbers 1 to 20, alone and with the comma that follows them in a list, and a few fixed pieces of
the protocol are user-defined symbols, one id each.
"""

import io
import itertools
import os
import re
from collections.abc import Iterable, Sequence
from functools import cached_property

import sentencepiece

from agenticrec_jax.paths import Path
from agenticrec_jax.tokenizers.base import CUT, Tokenizer, decode_around, neutralize
from agenticrec_jax.tokenizers.sentencepiece import FILE

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
_BLANK = "\u2581"  # a space, as sentencepiece writes it in its pieces
NUMBERS = tuple(str(n) for n in range(1, 21))
LISTED = tuple(f"{n}," for n in NUMBERS)  # a list of numbers is one id per number


class CompactTokenizer(Tokenizer):
    """Tokenizer of text and markers; a row pauses at ``</tool_call>``, ends at ``</answer>``."""

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
        """Returns the id of a marker; KeyError for a name that is not in ``MARKERS``."""
        return self._markers[name]

    def encode_data(self, text: str) -> list[int]:
        """Returns ids of text from data or from a tool, never a marker's id."""
        return self._pieces.encode(neutralize(text))

    def encode_markup(self, text: str) -> list[int]:
        """Returns ids of our own template text, in which markers stand for themselves."""
        ids: list[int] = []
        for piece in self._split.split(text):
            ids += [self._markers[piece]] if piece in self._markers else self._pieces.encode(piece)
        return ids

    def encode_words(self, text: str) -> list[int]:
        """Returns the ids of the distinct words of data that are one piece each, in their order.

        A plural counts as its word. Words of one letter, of several pieces, and numbers are left
        out: to a small policy they say little, and they take many ids.
        """
        ids = self.encode_data(text)
        words = [
            piece
            for piece, following in itertools.zip_longest(ids, ids[1:])
            if piece in self._words and following not in self._continuations
        ]
        return list(dict.fromkeys(words))

    @cached_property
    def _words(self) -> frozenset[int]:
        return self._matching(rf"{_BLANK}[^\W\d_]{{2,}}")

    @cached_property
    def _continuations(self) -> frozenset[int]:
        """Pieces that begin inside a word, but for the s of a plural."""
        return self._matching(r"(?!s$)[^\W\d_].*")

    def _matching(self, pattern: str) -> frozenset[int]:
        pieces = map(self._pieces.id_to_piece, range(self.vocab_size))
        return frozenset(i for i, piece in enumerate(pieces) if re.fullmatch(pattern, piece))

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids with markers spelled out, without padding."""
        return decode_around(ids, self._pieces.decode, self._spelled.get)

    def save(self, directory: str | os.PathLike) -> None:
        """Writes ``tokenizer.model`` into an existing directory."""
        (Path(directory) / FILE).write_bytes(self._model)


def train_tokenizer(
    lines: Iterable[str], vocab_size: int, symbols: Sequence[str]
) -> CompactTokenizer:
    """Trains a unigram model with byte fallback (Kudo 2018, arXiv:1804.10959), deterministically.

    Args:
      lines: the text to train on.
      vocab_size: number of ids; a small corpus may give fewer.
      symbols: strings that get one id each, beside the numbers 1 to 20. They are matched after
        normalization, so they must be lower case; one with a leading space is a word's beginning.
    """
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=out,
        vocab_size=vocab_size,
        model_type="unigram",
        hard_vocab_limit=False,  # otherwise a corpus that fills less of the vocabulary is an error
        byte_fallback=True,
        character_coverage=0.9995,
        normalization_rule_name="nmt_nfkc_cf",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,  # a leading space is part of a word
        control_symbols=list(MARKERS),
        user_defined_symbols=[*NUMBERS, *LISTED, CUT, *(s.replace(" ", _BLANK) for s in symbols)],
        pad_id=0,
        pad_piece=PAD,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        num_threads=1,  # more could end with other pieces from run to run
        minloglevel=2,
    )
    return CompactTokenizer(out.getvalue())
