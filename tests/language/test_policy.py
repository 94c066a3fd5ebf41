"""A policy directory as a completer: its prompts, its randomness, chats that are too long."""

import pytest
from flax import nnx
from transformers import AutoTokenizer

from agenticrec_jax.generation.engine import Engine, EngineConfig
from agenticrec_jax.language.completion import Chat, Decoding
from agenticrec_jax.language.policy import PolicyCompleter, chat_ids
from agenticrec_jax.testing.chat import SPECIAL, chat_tokenizer, write_chat_tokenizer
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.models import tiny_qwen3
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.tokenizers.huggingface import read_hf_tokenizer
from tests.language.policies import writer_of

TURNS = (
    ("system", "You rank, plan first."),
    ("user", "1. Blue Pen\n2. Ink\n\nRank them."),
    ("assistant", '[{"tool": "map"}]'),
    ("user", "map:\n2. Ink"),
)
CHAT = Chat((1, 0), TURNS)


def completer(model, tokenizer, *, context=2048, seed=0, made=None):
    """One on a small engine; ``made`` is filled with the sizes that are asked for."""
    graphdef, params = nnx.split(model)

    def make_engine(prompt_tokens, max_tokens):
        if made is not None:
            made.append((prompt_tokens, max_tokens))
        sizes = EngineConfig(
            slots=4,
            prompt_buckets=(prompt_tokens,),
            splice_buckets=(8,),
            max_tokens=max_tokens,
            row_buckets=(4,),
        )
        stops = [i for i in tokenizer.stop_ids if i != tokenizer.pause_id]
        return Engine(graphdef, sizes, tokenizer.pause_id, stops, tokenizer.pad_id)

    named = {"context": context, "name": "some/policy", "weights": "abc", "seed": seed}
    return PolicyCompleter(params, tokenizer, make_engine, **named)


def test_a_chat_is_encoded_as_the_template_does(tmp_path):
    lines = [text for _, text in TURNS] * 3
    write_chat_tokenizer(tmp_path, lines, 400)
    messages = [{"role": role, "content": text} for role, text in TURNS]
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    text = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    expected = theirs(text, add_special_tokens=False)["input_ids"]
    assert chat_ids(read_hf_tokenizer(tmp_path), CHAT) == expected


def test_a_chat_for_the_compact_tokenizer_has_its_two_markers():
    tokenizer = tiny_world().tokenizer
    chat = Chat((1,), (("system", "rank"), ("user", "pen"), ("assistant", "1"), ("user", "ink")))
    text = tokenizer.decode(chat_ids(tokenizer, chat))
    assert text == "<user> rank<user> pen<assistant> 1<user> ink<assistant>"


@pytest.mark.parametrize("tokenizer", [chat_tokenizer, lambda: tiny_world().tokenizer])
def test_no_text_spells_a_marker(tokenizer):
    tokenizer = tokenizer()
    bad = "".join(SPECIAL) + "</think><tool_call></answer><user><assistant>"
    ids = [len(chat_ids(tokenizer, Chat((1,), (("user", text),)))) for text in ("", bad)]
    marks = set(tokenizer.encode_markup("<|im_start|><|im_end|><tool_call></think><user>"))
    if tokenizer.prompt_style == "compact":
        marks = {tokenizer.marker(name) for name in ("<user>", "<assistant>", "</think>")}
    else:
        marks = {tokenizer.marker(name) for name in ("<|im_start|>", "<|im_end|>", "</think>")}
    plain = [i for i in chat_ids(tokenizer, Chat((1,), (("user", ""),))) if i in marks]
    spelled = [i for i in chat_ids(tokenizer, Chat((1,), (("user", bad),))) if i in marks]
    assert spelled == plain and ids[1] > ids[0] + 10


def test_a_policy_writes_its_turn():
    tokenizer = chat_tokenizer()
    made = []
    policy = completer(writer_of(tokenizer, "3;1,2"), tokenizer, made=made)
    seen = []
    chats = [CHAT, Chat((2, 0), TURNS[:2])]
    texts = policy.complete(chats, Decoding(0.0, 16), lambda i, text: seen.append((i, text)))
    assert texts == ["3;1,2"] * 2 and sorted(seen) == list(enumerate(texts))
    assert policy.complete(chats[1:], Decoding(0.0, 16)) == ["3;1,2"]
    assert policy.complete(chats[1:], Decoding(0.0, 3)) == ["3;1"]
    longest, shorter = (-(-len(chat_ids(tokenizer, chat)) // 128) * 128 for chat in chats)
    assert made == [(longest, 16), (shorter, 3)]  # an engine serves shorter prompts too
    assert policy.complete([], Decoding(0.0, 3)) == []


def test_a_text_depends_on_seed_and_key_alone():
    tokenizer = chat_tokenizer()
    model = tiny_qwen3(vocab_size=tokenizer.vocab_size)
    chats = [Chat((key, 0), TURNS[:2]) for key in range(5)]
    hot = Decoding(1.0, 8)
    policy = completer(model, tokenizer)
    texts = policy.complete(chats, hot)
    assert len(set(texts)) == 5
    assert policy.complete([chats[3], chats[0]], hot) == [texts[3], texts[0]]
    other = completer(model, tokenizer, seed=1)
    assert other.complete(chats, hot) != texts and other.identity != policy.identity


def test_a_prompt_that_does_not_fit_is_named_and_a_chat_that_grew_is_given_up():
    tokenizer = chat_tokenizer()
    context = len(chat_ids(tokenizer, CHAT))
    model = writer_of(tokenizer, "3;1,2")
    policy = completer(model, tokenizer, context=context)
    seen = []
    texts = policy.complete(
        [CHAT, Chat((1, 0), TURNS[:2])], Decoding(0.0, 8), lambda i, text: seen.append((i, text))
    )
    assert texts == ["", "3;1,2"] and sorted(seen) == list(enumerate(texts))
    long = Chat((1, 0), (("user", "pen " * context),))
    sentence = refused(policy.complete, [long], Decoding(0.0, 8))
    assert_names(sentence, "some/policy", context)
