"""Byte-level BPE with added tokens: none is made of data, and what a directory must have."""

import functools
import json
import os
import tempfile
import unicodedata
from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, processors, trainers

from agenticrec_jax.testing.chat import NOT_SPECIAL, SPECIAL, chat_tokenizer
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.tokenizers import huggingface as hf_tokenizer
from agenticrec_jax.tokenizers.base import literals, neutralize
from agenticrec_jax.tokenizers.huggingface import HFTokenizer, read_hf_tokenizer, stripped
from agenticrec_jax.tokenizers.load import load_tokenizer

TOKENS = (*SPECIAL, *NOT_SPECIAL)
PIECES = [*TOKENS, "<", ">", "|", "/", "tool_call", "im_end", "</", "|>", "<|", " ", "\n", "Pen"]
HOSTILE = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=8).map("".join)


@pytest.fixture(scope="module")
def tokenizer():
    return chat_tokenizer()


@pytest.fixture
def directory(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    return tmp_path


def changed(directory, change, name="tokenizer.json"):
    path = directory / name
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))
    return directory


@given(HOSTILE)
@example("".join(TOKENS))
def test_data_never_becomes_an_added_token(text):
    tokenizer = chat_tokenizer()
    ids = tokenizer.encode_data(text)
    assert not set(ids) & set(tokenizer.added_tokens.values())
    assert not any(token in tokenizer.decode(ids) for token in TOKENS)


@given(HOSTILE)
@example("".join(TOKENS))
def test_the_stripped_tokenizer_makes_none_of_text_as_it_is(text):
    """Without the visible change of literals, which alone would hide them."""
    whole, bare = _both()
    ids = bare.encode(text).ids
    assert not set(ids) & set(chat_tokenizer().added_tokens.values())
    assert bare.decode(ids) == unicodedata.normalize("NFC", text)
    if not any(token in text for token in TOKENS):
        assert ids == whole.encode(text).ids


def test_data_is_encoded_without_added_tokens_even_where_a_literal_stays(tokenizer, monkeypatch):
    monkeypatch.setattr(hf_tokenizer, "neutralize", lambda text, tokens: text)
    for token in TOKENS:
        ids = tokenizer.encode_data(f"Pen {token}")
        assert tokenizer.decode(ids) == f"Pen {token}"
        assert tokenizer.added_tokens[token] not in ids


def test_the_whole_tokenizer_would_have_made_them():
    whole, _ = _both()
    for token in TOKENS:
        ids = whole.encode(f"Pen {token}").ids
        assert ids[-1] == chat_tokenizer().added_tokens[token], token


@functools.cache
def _both():
    with tempfile.TemporaryDirectory() as directory:
        chat_tokenizer().save(directory)
        return read_both(directory)


def read_both(directory):
    """The library's own tokenizer of a directory, and the same without added tokens."""
    raw = json.loads((Path(directory) / "tokenizer.json").read_text(encoding="utf-8"))
    return [tokenizers.Tokenizer.from_str(json.dumps(x)) for x in (raw, stripped(raw))]


def test_markup_has_the_added_tokens_and_round_trips(tokenizer):
    text = '<|im_start|>user\n<think>a</think><tool_call>\n{"name": 1}\n</tool_call><|im_end|>\n'
    ids = tokenizer.encode_markup(text)
    added = [i for i in ids if i in tokenizer.added_tokens.values()]
    names = "<|im_start|> <think> </think> <tool_call> </tool_call> <|im_end|>".split()
    assert added == [tokenizer.marker(name) for name in names]
    assert tokenizer.decode(ids) == text
    with pytest.raises(KeyError):
        tokenizer.marker("Pen")


def test_rows_pause_and_end_where_qwen3_does(tokenizer):
    marker = tokenizer.marker
    assert tokenizer.pause_id == marker("</tool_call>")
    assert tokenizer.stop_ids == (marker("<|im_end|>"), marker("<|endoftext|>"))
    assert tokenizer.turn_end == marker("<|im_end|>")
    assert tokenizer.pad_id == marker("<|endoftext|>")
    assert (tokenizer.prefix, tokenizer.prompt_style) == ((), "chat")
    assert tokenizer.vocab_size == 1 + max(tokenizer.added_tokens.values())


def test_rows_of_the_model_without_a_token_are_visible(tokenizer):
    ids = tokenizer.encode_data("Pen")
    assert tokenizer.decode([*ids, tokenizer.vocab_size + 3, *ids]) == "Pen�Pen"


def test_a_line_is_cut_visibly_and_between_characters(tokenizer):
    line = "Pen 鋼筆 (Blue)"
    whole = tokenizer.encode_line(line, 99)
    assert tokenizer.decode(whole) == f" {line}\n"
    budget = len(tokenizer.encode_data(f" {line}"))
    assert tokenizer.encode_line(line, budget) == whole
    for shorter in range(budget):
        text = tokenizer.decode(tokenizer.encode_line(line, shorter))
        assert text.endswith("…\n") and "�" not in text
        assert f" {line}".startswith(text.removesuffix("…\n"))


def test_added_tokens_among_the_models_own_pieces_are_not_made_of_data(tmp_path):
    """As in tokenizers of GPT-2's kind, whose vocabulary holds the added tokens too."""
    whole = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", ignore_merges=True))
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(False, use_regex=False)
    whole.decoder = tokenizers.decoders.ByteLevel()
    names = ["<unk>", "<|im_start|>", "<|im_end|>", "<repo>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=names, initial_alphabet=alphabet)
    whole.train_from_iterator(["a pen"], trainer)
    whole.save(str(tmp_path / "tokenizer.json"))
    read = load_tokenizer(tmp_path)
    for name in names:
        assert read.encode_markup(name) == [read.marker(name)]
        assert not set(read.encode_data(name)) & {read.marker(n) for n in names}
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    bare = tokenizers.Tokenizer.from_str(json.dumps(stripped(raw)))
    assert not set(bare.encode("<repo>").ids) & {read.marker(n) for n in names}
    assert read.pause_id == read.turn_end == read.marker("<|im_end|>")


def test_a_beginning_of_text_comes_from_the_file(directory):
    whole = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    start = whole.token_to_id("<|fim_pad|>")
    whole.post_processor = processors.TemplateProcessing(
        single="<|fim_pad|> $A", special_tokens=[("<|fim_pad|>", start)]
    )
    whole.enable_truncation(3)
    whole.enable_padding()
    whole.save(str(directory / "tokenizer.json"))
    read = load_tokenizer(directory)
    assert read.prefix == (start,)
    assert start not in read.encode_markup("Pen") and len(read.encode_data("x " * 9)) > 9


def test_the_end_of_a_turn_is_the_configs_where_there_is_no_marker(directory):
    def rename(raw):
        for token in raw["added_tokens"]:
            token["content"] = token["content"].replace("<|im_end|>", "<|eot|>")

    def configure(raw):
        raw.update(eos_token={"content": "<|eot|>"}, pad_token="<|vision_pad|>")

    changed(directory, rename)
    changed(directory, configure, "tokenizer_config.json")
    read = load_tokenizer(directory)
    assert read.turn_end == read.marker("<|eot|>") == read.encode_markup("<|im_end|>")[0]
    assert read.pad_id == read.marker("<|vision_pad|>")


def test_files_are_written_as_they_were_read(tokenizer, tmp_path):
    first = tmp_path / "a"
    second = tmp_path / "b"
    first.mkdir()
    second.mkdir()
    tokenizer.save(first)
    (first / "chat_template.jinja").write_text("{{ messages }}")
    (first / "notes.txt").write_text("not the tokenizer's")
    read_hf_tokenizer(first).save(second)
    names = {path.name for path in second.iterdir()}
    assert names == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert all((first / n).read_bytes() == (second / n).read_bytes() for n in names)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda raw: raw["model"].update(type="WordPiece"), ["type", "WordPiece"]),
        (lambda raw: raw.update(decoder={"type": "Metaspace"}), ["byte-level BPE"]),
        (lambda raw: raw["model"].update(merges="none"), ["no tokenizer"]),
        (lambda raw: raw.update(added_tokens=[]), ["eos_token", "<|im_end|>"]),
    ],
)
def test_bad_files_are_named(directory, change, named):
    changed(directory, change)
    sentence = refused(load_tokenizer, directory)
    assert_names(sentence, directory / "tokenizer.json", *named)


def test_a_file_that_is_no_json_is_named(directory):
    (directory / "tokenizer.json").write_text("{")
    assert_names(refused(load_tokenizer, directory), directory / "tokenizer.json", "JSON")
    sentence = refused(HFTokenizer, {"tokenizer.json": b"[]"}, "here/tokenizer.json")
    assert_names(sentence, "here/tokenizer.json", "list", "object")


@pytest.mark.peer
class TestQwen3:
    """The published tokenizer; its directory is named by AGENTICREC_QWEN3_TOKENIZER."""

    @pytest.fixture(scope="class")
    def qwen3(self):
        return load_tokenizer(os.environ["AGENTICREC_QWEN3_TOKENIZER"])

    @pytest.fixture(scope="class")
    def both(self):
        return read_both(os.environ["AGENTICREC_QWEN3_TOKENIZER"])

    def test_its_ids_are_those_that_the_engine_needs(self, qwen3):
        assert qwen3.vocab_size == 151669
        assert (qwen3.pause_id, qwen3.stop_ids) == (151658, (151645, 151643))
        assert set(qwen3.added_tokens) == set(TOKENS)
        assert list(qwen3.added_tokens.values()) == list(range(151643, 151669))
        assert qwen3.decode([9707, 151900, 151645]) == "Hello�<|im_end|>"

    @settings(max_examples=2000)
    @given(text=HOSTILE)
    @example(text="".join(TOKENS))
    def test_no_text_makes_an_added_token(self, qwen3, text):
        for ids in (qwen3.encode_data(text), qwen3.encode_line(text, 9)):
            assert all(0 <= i < 151643 for i in ids)
        decoded = qwen3.decode(qwen3.encode_data(text))
        assert decoded == unicodedata.normalize("NFC", neutralize(text, literals(TOKENS)))

    @settings(max_examples=500)
    @given(text=HOSTILE)
    @example(text="".join(TOKENS))
    def test_nor_does_the_stripped_tokenizer_of_text_as_it_is(self, both, text):
        whole, bare = both
        ids = bare.encode(text).ids
        assert all(0 <= i < 151643 for i in ids)
        if not any(token in text for token in TOKENS):
            assert ids == whole.encode(text).ids

    def test_the_whole_tokenizer_would(self, both):
        assert both[0].encode("Pen </tool_call>").ids[-1] == 151658
