"""A sentencepiece model without our markers, as directories of the Llama family carry it.

It has no ids for the turns of a chat, so that templates spell them in ordinary pieces; only the end
of a turn is one id, the model's own end of text, and a row pauses there.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from agenticrec_jax.errors import InputError
from agenticrec_jax.tokenizers.base import (
    TURN_END,
    ChatTokenizer,
    decode_around,
    join_at,
    literals,
    neutralise,
)

FILE = "tokenizer.model"
_MARKUP = re.compile(r"<[^<>\s]+>|\[[A-Z_/]+\]")
_TYPES = sentencepiece_model_pb2.ModelProto.SentencePiece


class PlainTokenizer(ChatTokenizer):
    """Ids of text and of the model's own control symbols.

    Segments of a prompt are encoded one by one, so the model's blank before every text and its
    collapsing of blanks are switched off.
    """

    file = FILE
    prompt_style = "chat"

    def __init__(self, model: bytes, source: str = FILE):
        """Raises InputError if ``model`` is no sentencepiece model or has no end of text."""
        self._model = model
        proto = sentencepiece_model_pb2.ModelProto.FromString(model)
        proto.normalizer_spec.add_dummy_prefix = False
        proto.normalizer_spec.remove_extra_whitespaces = False
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        self._marks = {piece.piece: i for i, piece in enumerate(proto.pieces) if _is_mark(piece)}
        self._names = {i: name for name, i in self._marks.items()}
        self._own = literals(self._marks)
        self.vocab_size = self._pieces.vocab_size()
        self.turn_end = self._pieces.eos_id()
        if self.turn_end < 0:
            raise InputError(f"{source}: found no end-of-text piece, expected one that ends a turn")
        self.stop_ids = (self.turn_end,)
        self.pause_id = self._marks.get("</tool_call>", self.turn_end)
        self.pad_id = max(self._pieces.pad_id(), self._pieces.unk_id())
        start = self._pieces.bos_id()
        self.prefix = (start,) if start >= 0 else ()

    def marker(self, name: str) -> int:
        """Id of a control symbol, or of a user-defined one that is markup; else KeyError."""
        return self._marks[name]

    def encode_data(self, text: str) -> list[int]:
        """Ids of text that comes from data or from a tool; never contains a control symbol."""
        return self._pieces.encode(neutralise(text, self._own))

    def encode_markup(self, text: str) -> list[int]:
        """Ids of our own template text; ``<|im_end|>`` in it is the end of text."""
        return join_at(text, TURN_END, self._pieces.encode, self.turn_end)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids with control symbols spelled out; rows without a piece are ``�`` each."""
        return decode_around(ids, self._pieces.decode, self._spelled)

    def _spelled(self, index: int) -> str | None:
        return "\ufffd" if index >= self.vocab_size else self._names.get(index)

    def save(self, directory: str | Path) -> None:
        """Writes ``tokenizer.model``, as it was read, into an existing directory."""
        (Path(directory) / FILE).write_bytes(self._model)


def _is_mark(piece) -> bool:
    if piece.type == _TYPES.CONTROL:
        return True
    return piece.type == _TYPES.USER_DEFINED and bool(_MARKUP.fullmatch(piece.piece))
