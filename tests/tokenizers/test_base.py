"""Data made harmless, ids joined at marks, and the text that each id adds."""

import pytest

from agenticrec_jax.testing.chat import NOT_SPECIAL, SPECIAL, chat_tokenizer
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.tokenizers.base import join_at, literals, neutralize, spellings


@pytest.mark.parametrize("token", [*SPECIAL, *NOT_SPECIAL, "</tools>", "<OBSERVATION>", "<|a0|>"])
def test_every_marker_in_data_is_made_harmless_and_stays_legible(token):
    text = neutralize(f"Pen {token}, 12-Pack")
    assert token not in text and token.strip("<>") in text
    assert text.startswith("Pen ‹") and text.endswith("›, 12-Pack")


def test_ordinary_text_stays_as_it_is():
    text = "Avery <3 labels> 1/2 x 1 [50] | 8 > 7 <b>bold</b> naïve 日本語"
    assert neutralize(text) == text


def test_tokens_of_a_tokenizers_own_are_made_harmless_too():
    tokens = literals(["<s>", "</s>", "[INST]", "<s", "  "])
    text = neutralize("<s>  [INST] x</s><|im_end|>", tokens)
    assert text == "‹s›  [·INST] x‹/s›‹|im_end|›"
    assert literals(["  ", "\n"]) is None


def test_half_of_a_surrogate_pair_is_text_that_can_be_encoded():
    assert neutralize("a\ud800b") == "a?b"


def test_a_mark_in_a_template_stands_for_an_id():
    assert join_at("ab|c|", "|", list, 7) == ["a", "b", 7, "c", 7]


@pytest.mark.parametrize("make", [chat_tokenizer, lambda: tiny_world().tokenizer])
def test_spellings_put_together_are_the_text(make):
    """Blanks before words included, which a word alone would lose."""
    tokenizer = make()
    ids = tokenizer.encode_markup("<think>a pen</think> <answer>\\boxed{[12, 3,]}</answer>")
    texts = spellings(tokenizer)
    assert len(texts) == tokenizer.vocab_size
    assert "".join(texts[i] for i in ids) == tokenizer.decode(ids)
    assert any(text.startswith(" ") and len(text) > 3 for text in texts)
    assert texts[tokenizer.pause_id] == "</tool_call>"
