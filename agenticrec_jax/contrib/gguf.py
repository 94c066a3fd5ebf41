"""Llama-family policies read from GGUF, llama.cpp's format of one file with quantized weights.

Metadata becomes ``Qwen3Config``, and tensors are dequantized one at a time. Metadata that llama.cpp
would use and we would not (rope scaling, experts, biases, another tokenizer) is refused by name.
The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Needs the package ``gguf``,
which is in the extra ``demo``.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.models.config import Qwen3Config
from agenticrec_jax.models.io.huggingface import read_parameters, write_json
from agenticrec_jax.models.qwen3 import Qwen3

_INTEGERS = {  # fields of Qwen3Config by their metadata keys
    "llama.vocab_size": "vocab_size",
    "llama.embedding_length": "hidden_size",
    "llama.feed_forward_length": "intermediate_size",
    "llama.block_count": "num_layers",
    "llama.attention.head_count": "num_heads",
    "llama.attention.head_count_kv": "num_kv_heads",
    "llama.context_length": "max_position_embeddings",
    "llama.rope.dimension_count": "head_dim",
}
_THETA = "llama.rope.freq_base"
_EPS = "llama.attention.layer_norm_rms_epsilon"
_HEAD_WIDTHS = ("llama.attention.key_length", "llama.attention.value_length")
_TOKENIZER = "tokenizer.ggml."
_EXPECTED = {  # fields of the tokenizer; a missing flag is off
    "model": "gpt2",
    "pre": "smollm",
    "add_bos_token": False,
    "add_eos_token": False,
    "add_space_prefix": False,
}
_SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
_CONTROL = 3  # token types
_USER_DEFINED = 4
# What the library and NumPy raise where a file is damaged.
_DAMAGE = (ValueError, LookupError, ArithmeticError, TypeError, OSError, RecursionError)


class GgufFile:
    """The metadata and tensors of a GGUF file of architecture ``llama``.

    Tensors are read by Hugging Face's names, as ``io.safetensors.Reader`` reads weight files.

    Raises:
      InputError: ``gguf`` is not installed, or the file is missing, cut short or of another
        architecture.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._gguf = _library()
        if not self.path.is_file():
            raise InputError(f"{self.path}: file not found, expected a GGUF file")
        try:
            reader = _bounded_reader(self._gguf)(self.path)
            self.metadata = {name: field.contents() for name, field in reader.fields.items()}
        except _DAMAGE as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{self.path}: not a whole GGUF file: {reason}") from None
        architecture = self.metadata.get("general.architecture")
        where = f"{self.path}: general.architecture"
        expect(architecture == "llama", where, architecture, "'llama'")
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._read: set[str] = set()
        layers = self.need("llama.block_count")
        # The library makes a name for every tensor of every layer, and a layer has some tensors.
        where = f"{self.path}: llama.block_count"
        most = len(self._tensors)
        expect(1 <= layers <= most, where, layers, f"1 to {most}, the number of tensors")
        self._names = self._gguf.get_tensor_name_map(self._gguf.MODEL_ARCH.LLAMA, layers)

    def need(self, key: str, kind: type = int) -> Any:
        """Returns the value of a metadata key; InputError unless it is there and of this kind."""
        value = self.metadata.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise InputError(f"{self.path}: {key}: found {_short(value)}, expected {kind.__name__}")
        return value

    def __contains__(self, name: str) -> bool:
        return self._gguf_name(name) in self._tensors

    def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Reads one tensor, dequantized to float32.

        Raises:
          InputError: the tensor is missing, has another shape, or values that are no weights.
        """
        gguf_name = self._gguf_name(name)
        if gguf_name not in self._tensors:
            raise InputError(f"{self.path}: tensor {gguf_name} is missing")
        tensor = self._tensors[gguf_name]
        stored = tuple(int(size) for size in reversed(tensor.shape))
        expect(stored == shape, f"{self.path}: shape of tensor {gguf_name}", stored, str(shape))
        self._read.add(gguf_name)
        try:
            value = self._gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        except (RuntimeError, ValueError) as error:  # a kind that it does not know, too
            kind = tensor.tensor_type.name
            where = f"{self.path}: type of tensor {gguf_name}"
            raise InputError(f"{where}: found {kind} ({error}), expected weights") from None
        # llama.cpp rotates neighboring pairs of a head where transformers rotates its halves. So
        # the rows of q and k are stored interleaved.
        for projection, heads in (("q_proj", "head_count"), ("k_proj", "head_count_kv")):
            if f".{projection}." in name:
                value = _halves(value, self.need(f"llama.attention.{heads}"))
        return value

    def unread(self) -> Iterator[tuple[Path, str]]:
        """Yields the file and name of every tensor that was not read."""
        yield from ((self.path, name) for name in sorted(self._tensors.keys() - self._read))

    def _gguf_name(self, name: str) -> str:
        return self._names.get_name(name, try_suffixes=(".weight", ".bias")) or name


def _library():
    try:
        import gguf
    except ModuleNotFoundError:
        raise InputError(
            "package gguf is not installed, which reads GGUF files; expected an installation with "
            'the extra demo: pip install -e ".[demo]"'
        ) from None
    return gguf


def _bounded_reader(gguf: ModuleType) -> type:
    """Returns the library's reader, which stops where the file ends.

    The library reads nothing there without an error. A count of 2**60 elements would take it as
    many rounds.
    """

    class Reader(gguf.GGUFReader):
        def _get(
            self, offset: int, dtype: np.dtype, count: int = 1, override_order: str | None = None
        ) -> np.ndarray:
            end = int(offset) + np.dtype(dtype).itemsize * int(count)
            if end > len(self.data):
                raise ValueError(f"{end} bytes are named and {len(self.data)} are there")
            return super()._get(offset, dtype, count, override_order)

    return Reader


def _halves(value: np.ndarray, heads: int) -> np.ndarray:
    """Reorders the rows of each head from pairs to halves: 0 1 2 3 4 5 to 0 2 4 1 3 5."""
    pairs = value.reshape(heads, -1, 2, value.shape[1])
    return pairs.swapaxes(1, 2).reshape(value.shape)


def read_config(file: GgufFile) -> Qwen3Config:
    """Reads the policy's config from the metadata.

    Raises:
      InputError: names the key that is missing, unfit, or would be ignored.
    """
    known = {*_INTEGERS, *_HEAD_WIDTHS, _THETA, _EPS}
    for key, value in file.metadata.items():
        if key.startswith("llama.") and key not in known:
            raise InputError(f"{file.path}: {key}: found {_short(value)}, expected a file without")
    integers = {field: file.need(key) for key, field in _INTEGERS.items()}
    theta, eps = (_shortest(file, key) for key in (_THETA, _EPS))
    for key in _HEAD_WIDTHS:
        width = file.metadata.get(key, integers["head_dim"])
        expected = f"llama.rope.dimension_count {integers['head_dim']}"
        expect(width == integers["head_dim"], f"{file.path}: {key}", width, expected)
    try:
        return Qwen3Config(
            **integers,
            rope_theta=theta,
            rms_norm_eps=eps,
            tie_word_embeddings="lm_head.weight" not in file,
            qk_norm=False,
        )
    except InputError as error:
        raise InputError(f"{file.path}: {error}") from None


def _shortest(file: GgufFile, key: str) -> float:
    """Returns the shortest decimal that is the same float32: 1e-05, not 9.999999747378752e-06.

    Raises:
      InputError: the key is missing or no number above 0.
    """
    value = file.need(key, float)
    expect(0 < value < math.inf, f"{file.path}: {key}", value, "a number above 0")
    return float(str(np.float32(value)))


def read_policy(file: GgufFile) -> Qwen3:
    """Reads the policy, in float32.

    Raises:
      InputError: names the metadata key or the tensor that is missing, unfit or not in the model.
    """
    model = read_parameters(file, read_config(file))
    for path, name in file.unread():
        raise InputError(f"{path}: found tensor {name}, expected only those of a Llama model")
    return model


def write_tokenizer(file: GgufFile, directory: Path) -> dict[str, int]:
    """Writes ``tokenizer.json`` and ``tokenizer_config.json``, which ``AutoTokenizer`` loads.

    The chat template is the file's.

    Returns:
      Special ids by their names in ``generation_config.json``: ``bos_token_id``, ``eos_token_id``
      and ``pad_token_id``, as far as the file has them.

    Raises:
      InputError: the file has another kind of tokenizer, or one whose fields do not agree.
    """
    tokens = file.need(f"{_TOKENIZER}tokens", list)
    ids = {
        name: file.need(_TOKENIZER + key)
        for name, key in _SPECIAL.items()
        if _TOKENIZER + key in file.metadata
    }
    for name, index in ids.items():
        fits = 0 <= index < len(tokens)
        expect(fits, f"{file.path}: {name}", index, f"0 to {len(tokens) - 1}")
    build_tokenizer(file).save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": file.need("llama.context_length"),
        "clean_up_tokenization_spaces": False,
        **{name: tokens[index] for name, index in ids.items()},
    }
    if "tokenizer.chat_template" in file.metadata:
        config["chat_template"] = file.need("tokenizer.chat_template", str)
    write_json(directory / "tokenizer_config.json", config)
    return {f"{name}_id": index for name, index in ids.items() if name != "unk_token"}


def build_tokenizer(file: GgufFile) -> Tokenizer:
    """Builds the file's byte-level BPE tokenizer: single digits, then the pieces of GPT-2.

    Raises:
      InputError: as ``write_tokenizer``.
    """
    for key, expected in _EXPECTED.items():
        value = file.metadata.get(_TOKENIZER + key, False)
        expect(value == expected, f"{file.path}: {_TOKENIZER}{key}", value, repr(expected))
    tokens = file.need(f"{_TOKENIZER}tokens", list)
    types = file.need(f"{_TOKENIZER}token_type", list)
    size = file.need("llama.vocab_size")
    if not len(tokens) == len(types) == size == len(set(tokens)):
        raise InputError(
            f"{file.path}: found {len(set(tokens))} different {_TOKENIZER}tokens and {len(types)} "
            f"token types, expected llama.vocab_size {size} of both"
        )
    merges = file.need(f"{_TOKENIZER}merges", list)
    for name, texts in (("tokens", tokens), ("merges", merges)):
        other = next((text for text in texts if not isinstance(text, str)), "")
        expect(isinstance(other, str), f"{file.path}: {_TOKENIZER}{name}", other, "texts")
    merges = [tuple(pair.split(" ")) for pair in merges]
    try:
        bpe = models.BPE({token: i for i, token in enumerate(tokens)}, merges)
    except Exception as error:  # the library raises nothing more special
        raise InputError(f"{file.path}: {_TOKENIZER}merges do not fit tokens: {error}") from None
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = list(zip(tokens, types, strict=True))
    tokenizer.add_special_tokens([_added(token) for token, kind in kinds if kind == _CONTROL])
    tokenizer.add_tokens([_added(token) for token, kind in kinds if kind == _USER_DEFINED])
    return tokenizer


def _short(value: Any) -> Any:
    """Returns a value for a message, cut where it is a long list."""
    return value if value is None else str(value)[:80]


def _added(token: str) -> AddedToken:
    return AddedToken(token, normalized=False)
