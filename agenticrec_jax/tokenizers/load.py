"""The tokenizer of a policy directory, of whatever kind it is."""

import os

import sentencepiece

from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.models.io.safetensors import read_json
from agenticrec_jax.paths import Path, is_there, require_file
from agenticrec_jax.tokenizers import huggingface as hf_tokenizer
from agenticrec_jax.tokenizers.base import Tokenizer
from agenticrec_jax.tokenizers.compact import MARKERS, CompactTokenizer
from agenticrec_jax.tokenizers.sentencepiece import FILE, PlainTokenizer


def load_tokenizer(directory: str | os.PathLike) -> Tokenizer:
    """Loads the tokenizer of a policy directory.

    A ``tokenizer.json`` comes first if it is byte-level BPE. Otherwise ``tokenizer.model`` is read:
    a compact tokenizer, or a sentencepiece model without our markers.

    >>> tokenizer = load_tokenizer("tools_data/tiny_policy")
    >>> tokenizer.decode(tokenizer.encode_data("gel pen, 12-pack"))
    'gel pen, 12-pack'

    Raises:
      InputError: neither file exists, or the file holds no such tokenizer. Names the file.
    """
    json_path = Path(directory) / hf_tokenizer.FILE
    model_path = Path(directory) / FILE
    if is_there(json_path):
        require_file(json_path, "a tokenizer")
        raw = read_json(json_path)
        if hf_tokenizer.is_byte_level(raw):
            return hf_tokenizer.read_hf_tokenizer(directory)
        kind = hf_tokenizer.kind_of(raw.get("model"))
        expected = f"byte-level BPE, or a {FILE} beside it"
        expect(model_path.is_file(), f"{json_path}: tokenizer type", kind, expected)
    require_file(model_path, f"it or a {hf_tokenizer.FILE} beside it")
    return _sentencepiece_tokenizer(model_path)


def _sentencepiece_tokenizer(path: Path) -> Tokenizer:
    model = path.read_bytes()
    pieces = sentencepiece.SentencePieceProcessor()
    try:
        pieces.LoadFromSerializedProto(model)
        pieces.id_to_piece(list(range(pieces.vocab_size())))  # decodes every piece
    except RuntimeError:
        raise InputError(f"{path}: found no sentencepiece model, expected one") from None
    except UnicodeDecodeError:  # of a piece, or of the library's sentence about a piece
        raise InputError(f"{path}: found a piece that is not UTF-8, expected UTF-8") from None
    if pieces.unk_id() < 0:
        raise InputError(f"{path}: found no piece of type UNKNOWN, expected one")
    is_compact = pieces.pad_id() >= 0
    is_compact &= all(pieces.IsControl(pieces.piece_to_id(name)) for name in MARKERS)
    return CompactTokenizer(model) if is_compact else PlainTokenizer(model, str(path))
