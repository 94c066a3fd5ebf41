"""A sentencepiece model without our markers: data, segments, turns, and which files are refused."""

import io

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agenticrec_jax.errors import InputError
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.tokenizers.base import spellings
from agenticrec_jax.tokenizers.compact import CompactTokenizer, train_tokenizer
from agenticrec_jax.tokenizers.load import load_tokenizer
from agenticrec_jax.tokenizers.sentencepiece import PlainTokenizer

LINES = ["a blue pen and a pad", "the user took a stapler", "tape, 12 rolls"] * 20
MARKUP = ["<s>", "</s>", "<unk>", "[INST]", "<start>", "</tool_call>", "<", "pen", " ", "</", ">"]
HOSTILE = st.lists(st.sampled_from(MARKUP) | st.text(max_size=3), max_size=8).map("".join)


def trained(**changes):
    """A model as the Llama family's: a blank before each text, bytes for what it does not know."""
    out = io.BytesIO()
    settings = {"bos_id": 1, "eos_id": 2, "pad_id": -1, "user_defined_symbols": ["[INST]", "ta"]}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=out,
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        control_symbols=["<start>"],
        normalization_rule_name="identity",
        minloglevel=2,
        **(settings | changes),
    )
    return out.getvalue()


MODEL = trained()
COMPACT = train_tokenizer(LINES, 400, ())._model


@pytest.fixture(scope="module")
def tokenizer():
    return PlainTokenizer(MODEL)


@given(HOSTILE)
def test_data_never_becomes_a_control_symbol_or_markup(text):
    tokenizer = PlainTokenizer(MODEL)
    marks = {tokenizer.marker(name) for name in ("<s>", "</s>", "<start>", "[INST]")}
    assert not set(tokenizer.encode_data(text)) & marks


def test_segments_join_to_the_text_that_they_are_of(tokenizer):
    segments = ["1.", " a blue pen\n", "2.", "  tape\n"]
    ids = [i for segment in segments for i in tokenizer.encode_data(segment)]
    assert tokenizer.decode(ids) == "".join(segments)
    assert tokenizer.decode(tokenizer.encode_line("a blue pen", 9)) == " a blue pen\n"


def test_a_turn_ends_at_the_end_of_text_and_a_row_pauses_there(tokenizer):
    assert (tokenizer.turn_end, tokenizer.pause_id, tokenizer.stop_ids) == (2, 2, (2,))
    assert (tokenizer.prefix, tokenizer.pad_id) == ((1,), 0)
    ids = tokenizer.encode_markup("a pen<|im_end|>\n")
    assert ids.count(2) == 1 and tokenizer.decode(ids) == "a pen</s>\n"
    assert tokenizer.decode([2, tokenizer.vocab_size + 1]) == "</s>�"


def test_a_model_with_a_call_marker_pauses_there():
    tokenizer = PlainTokenizer(trained(user_defined_symbols=["</tool_call>"]))
    call = tokenizer.marker("</tool_call>")
    assert tokenizer.pause_id == call and tokenizer.encode_markup("</tool_call>")[-1] == call
    assert call not in tokenizer.encode_data("</tool_call>")


def test_pieces_that_are_words_stay_data(tokenizer):
    assert tokenizer.decode(tokenizer.encode_data("tape")) == "tape"
    with pytest.raises(KeyError):
        tokenizer.marker("ta")


def test_a_directory_with_only_a_model_loads_by_what_it_holds(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(MODEL)
    read = load_tokenizer(tmp_path)
    assert isinstance(read, PlainTokenizer)
    (tmp_path / "again").mkdir()
    read.save(tmp_path / "again")
    assert (tmp_path / "again" / "tokenizer.model").read_bytes() == MODEL
    train_tokenizer(LINES, 400, ()).save(tmp_path)
    assert isinstance(load_tokenizer(tmp_path), CompactTokenizer)


def test_a_byte_level_tokenizer_json_goes_before_a_model_and_another_after(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(MODEL)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE"}, "decoder": null}')
    assert isinstance(load_tokenizer(tmp_path), PlainTokenizer)


def test_models_without_an_end_and_files_that_are_none_are_named(tmp_path):
    path = tmp_path / "tokenizer.model"
    for content, named in (
        (trained(eos_id=-1), "end-of-text piece"),
        (b"", "sentencepiece model"),
        (b"not a model", "sentencepiece model"),
    ):
        path.write_bytes(content)
        assert_names(refused(load_tokenizer, tmp_path), path, named)


@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 2**30), st.integers(0, 255)), min_size=1, max_size=3),
    st.none() | st.integers(0, 2**30),
)
def test_a_model_of_any_damaged_bytes_spells_all_ids_or_is_refused(tmp_path, compact, changes, end):
    damaged = bytearray(COMPACT if compact else MODEL)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    (tmp_path / "tokenizer.model").write_bytes(damaged[: end and end % len(damaged)])
    try:
        tokenizer = load_tokenizer(tmp_path)
    except InputError as error:
        assert str(tmp_path / "tokenizer.model") in str(error) and "\n" not in str(error)
        return
    assert len(spellings(tokenizer)) == tokenizer.vocab_size
    ids = [
        *tokenizer.encode_data("Tape é </s>"),
        *tokenizer.encode_markup("<answer>"),
        tokenizer.pad_id,
    ]
    assert all(0 <= i < tokenizer.vocab_size for i in (*ids, *tokenizer.stop_ids))


@pytest.mark.parametrize("piece", ["ta", "ll", "</s>", "[INST]"])
def test_a_piece_that_is_not_utf8_is_refused(tmp_path, piece):
    path = tmp_path / "tokenizer.model"
    stored = b"\n" + bytes([len(piece)]) + piece.encode()
    assert MODEL.count(stored) == 1
    path.write_bytes(MODEL.replace(stored, stored[:-1] + b"\xb0"))
    assert_names(refused(load_tokenizer, tmp_path), path, "UTF-8")
