"""A sentencepiece model without our markers, as directories of the Llama family have it.

It has no ids for the turns of a chat, so templates spell them in ordinary pieces. Only the end of a
turn is one id, the model's end of text, and a row pauses there.
"""

import os
import re
from collections.abc import Sequence

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from agenticrec_jax.errors import InputError
from agenticrec_jax.paths import Path
from agenticrec_jax.tokenizers.base import (
    TURN_END,
    ChatTokenizer,
    decode_around,
    join_at,
    literals,
    neutralize,
)

FILE = "tokenizer.model"
_MARKUP = re.compile(r"<[^<>\s]+>|\[[A-Z_/]+\]")
_TYPES = sentencepiece_model_pb2.ModelProto.SentencePiece


class PlainTokenizer(ChatTokenizer):
    """Tokenizer of text and of the model's control symbols."""

    file = FILE
    prompt_style = "chat"

    def __init__(self, model: bytes, source: str = FILE):
        """Builds the tokenizer.

        Args:
          model: contents of the file.
          source: path of the file, for errors.

        Raises:
          InputError: the model has no end of text.
        """
        self._model = model
        proto = sentencepiece_model_pb2.ModelProto.FromString(model)
        # Segments of a prompt are encoded one by one. A blank before each of them, and blanks that
        # collapse, would change the text that they join to.
        proto.normalizer_spec.add_dummy_prefix = False
        proto.normalizer_spec.remove_extra_whitespaces = False
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        self._marks = {piece.piece: i for i, piece in enumerate(proto.pieces) if _is_mark(piece)}
        self._names = {i: name for name, i in self._marks.items()}
        self._literals = literals(self._marks)
        self.vocab_size = self._pieces.vocab_size()
        self.turn_end = self._pieces.eos_id()
        if self.turn_end < 0:
            raise InputError(f"{source}: found no end-of-text piece, expected one to end a turn")
        self.stop_ids = (self.turn_end,)
        self.pause_id = self._marks.get("</tool_call>", self.turn_end)
        self.pad_id = max(self._pieces.pad_id(), self._pieces.unk_id())
        start = self._pieces.bos_id()
        self.prefix = (start,) if start >= 0 else ()

    def marker(self, name: str) -> int:
        """Returns the id of a control symbol or of user-defined markup; else KeyError."""
        return self._marks[name]

    def encode_data(self, text: str) -> list[int]:
        """Returns ids of text from data or from a tool, never a control symbol."""
        return self._pieces.encode(neutralize(text, self._literals))

    def encode_markup(self, text: str) -> list[int]:
        """Returns ids of our own template text; ``<|im_end|>`` in it is the end of text."""
        return join_at(text, TURN_END, self._pieces.encode, self.turn_end)

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids with control symbols spelled out.

        An id beyond the vocabulary, which the policy's embedding may have a row for, is ``�``.
        """
        return decode_around(ids, self._pieces.decode, self._spelled)

    def _spelled(self, index: int) -> str | None:
        return "\ufffd" if index >= self.vocab_size else self._names.get(index)

    def save(self, directory: str | os.PathLike) -> None:
        """Writes ``tokenizer.model``, as it was read, into an existing directory."""
        (Path(directory) / FILE).write_bytes(self._model)


def _is_mark(piece) -> bool:
    """Whether a piece is markup: a control symbol, or user-defined such as ``[INST]``."""
    if piece.type == _TYPES.CONTROL:
        return True
    return piece.type == _TYPES.USER_DEFINED and bool(_MARKUP.fullmatch(piece.piece))
