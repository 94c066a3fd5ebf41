"""Profiles: what their prompts show, and what the engine makes of them."""

import copy
import dataclasses
import types

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from agenticrec_jax.agent import chat
from agenticrec_jax.agent.profiles import ProfileWriter, profile_text
from agenticrec_jax.agent.prompts import make_prompts, rated
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import make_items, make_log
from agenticrec_jax.generation.engine import Engine, EngineConfig, Rollout
from agenticrec_jax.testing.chat import NOT_SPECIAL, SPECIAL, chat_tokenizer
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.models import tiny_qwen3
from agenticrec_jax.testing.synthetic import randomized
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.tokenizers.base import neutralize
from agenticrec_jax.tokenizers.compact import MARKERS
from agenticrec_jax.tools.base import AsOfView

STYLES = ("compact", "chat")
MARKS = {"compact": MARKERS, "chat": (*SPECIAL, *NOT_SPECIAL)}
BUDGET = 12
PLANTED = "Zanzibar Xylophone"


def tokenizer_of(style):
    return tiny_world().tokenizer if style == "compact" else chat_tokenizer()


def writer(log, style="compact", room=4096, engine=None, **changes):
    """One whose engine is only its sizes, unless one is given."""
    sizes = types.SimpleNamespace(prompt_buckets=(64, room))
    settings = {"events": 0, "words": 33, "temperature": 0.0, "seed": 3} | changes
    prompts = make_prompts(tokenizer_of(style), log.items, 30)
    return ProfileWriter(log, prompts, engine or types.SimpleNamespace(config=sizes), **settings)


@pytest.mark.parametrize("style", STYLES)
def test_nothing_at_or_after_the_cut_changes_a_prompt(style):
    log = tiny_world().log
    for example in tiny_world().examples[::5]:
        expected = writer(log, style).prompt(example)
        after = np.arange(len(log)) >= example.position
        assert writer(log.keep(~after), style).prompt(example) == expected
        changed = randomized(log, after, example.position)
        assert writer(changed, style).prompt(example) == expected


@pytest.mark.parametrize("style", STYLES)
def test_neither_other_users_nor_the_question_change_a_prompt(style):
    log = tiny_world().log
    for example in tiny_world().examples[::9]:
        expected = writer(log, style).prompt(example)
        alone = log.keep(log.user == example.user)
        position = int((log.user[: example.position] == example.user).sum())
        assert writer(alone, style).prompt(dataclasses.replace(example, position=position)) == (
            expected
        )
        other = dataclasses.replace(
            example, target=example.candidates[0], candidates=example.candidates[::-1], time=7**13
        )
        assert writer(log, style).prompt(other) == expected


@pytest.mark.parametrize("style", STYLES)
def test_a_title_of_the_future_never_occurs_in_a_prompt(style):
    """Every item that the user takes at or after the cut, and not before, has a planted title."""
    log, decode = tiny_world().log, tokenizer_of(style).decode
    for example in tiny_world().examples[::5]:
        positions = log.events_of(example.user)
        past = set(log.item[positions[positions < example.position]].tolist())
        future = set(log.item[positions[positions >= example.position]].tolist()) - past
        title = [PLANTED if i in future else t for i, t in enumerate(log.items.title)]
        planted_log = dataclasses.replace(
            log, items=dataclasses.replace(log.items, title=tuple(title))
        )
        assert PLANTED.lower() not in decode(writer(planted_log, style).prompt(example)).lower()
        planted = [PLANTED if i in past else t for i, t in enumerate(log.items.title)]
        control = dataclasses.replace(
            log, items=dataclasses.replace(log.items, title=tuple(planted))
        )
        text = decode(writer(control, style).prompt(example)).lower()
        assert text.count(PLANTED.lower()) == (positions < example.position).sum()


@pytest.mark.parametrize("style", STYLES)
def test_an_event_before_the_cut_and_its_rating_do_change_a_prompt(style):
    """The control: the comparisons above are able to see a difference."""
    log, example = tiny_world().log, tiny_world().examples[4]
    first = log.events_of(example.user)[0]
    expected = writer(log, style).prompt(example)
    for name, value in (("rating", 2.5), ("item", (log.item[first] + 1) % log.num_items)):
        column = getattr(log, name).copy()
        column[first] = value
        changed = dataclasses.replace(log, **{name: column})
        items = changed.item[[e for e in log.events_of(example.user) if e < example.position]]
        history = tuple(items[-len(example.history) :].tolist())
        shorter = dataclasses.replace(example, history=history)
        assert writer(changed, style).prompt(shorter) != expected


def small_log(ratings):
    """One user takes items 0, 1, 2.. of a catalog and then the last one."""
    titles = [f"Pen of color {n}" for n in range(len(ratings))] + ["Stapler"]
    items = make_items([f"i{n}" for n in range(len(titles))], titles)
    codes = list(range(len(titles)))
    log = make_log(["u"] * len(codes), codes, codes, [*ratings, 1.0], items=items)
    past = len(ratings)
    history = tuple(range(max(0, past - 10), past))
    return log, RankingExample(past, 0, past, past, history, (past, 0), past, "test")


def test_a_compact_prompt_is_one_turn_with_ratings():
    log, example = small_log([4, float("nan"), 2.5])
    text = tiny_world().tokenizer.decode(writer(log).prompt(example))
    assert text == (
        "<user> history: h1 pen of color 0 rated 4 h2 pen of color 1 "
        "h3 pen of color 2 rated 2.5; profile<assistant>"
    )


def test_a_chat_prompt_is_the_templates(tmp_path):
    chat_tokenizer().save(tmp_path)
    peer = AutoTokenizer.from_pretrained(tmp_path)
    log = tiny_world().log
    for example in tiny_world().examples[:8]:
        view = AsOfView(log, example)
        lines = [
            f"h{number}{rated(rating)}. {log.items.title[item]}"
            for number, (item, rating) in enumerate(
                zip(view.own_items, view.own_ratings, strict=True), 1
            )
        ]
        body = "\n".join(["Taken, oldest first:", *lines, chat.profile_question(33)])
        assert "at most 33 words" in body
        said = [{"role": "system", "content": chat.PROFILER}, {"role": "user", "content": body}]
        expected = peer.apply_chat_template(said, add_generation_prompt=True, return_dict=False)
        assert writer(log, "chat").prompt(example) == expected


@given(st.lists(st.sampled_from([*SPECIAL, *NOT_SPECIAL, "\n", "h2. "]) | st.text(max_size=4)))
def test_a_title_is_data(pieces):
    log, example = small_log([4, 5])
    hostile = dataclasses.replace(log.items, title=("".join(pieces), *log.items.title[1:]))
    for style in STYLES:
        tokenizer = tokenizer_of(style)
        marks = {tokenizer.marker(name) for name in MARKS[style]}
        texts = [
            [
                i
                for i in writer(dataclasses.replace(log, items=i), style).prompt(example)
                if i in marks
            ]
            for i in (log.items, hostile)
        ]
        assert texts[0] == texts[1] and texts[0]
    lines = tokenizer.decode(
        writer(dataclasses.replace(log, items=hostile), "chat").prompt(example)
    ).split("\n")
    assert [line[:2] for line in lines].count("h2") == 1


def test_only_the_newest_events_that_fit_are_shown():
    log, example = small_log([3] * 30)
    decode = tiny_world().tokenizer.decode
    whole = writer(log).prompt(example)
    newest = decode(writer(log, events=4).prompt(example))
    assert "color 29" in newest and "h4" in newest and "h5" not in newest
    for room in (len(whole) - 1, len(whole) // 2):
        ids = writer(log, room=room).prompt(example)
        assert len(ids) <= room < len(ids) + 24
        assert "color 29" in decode(ids) and "color 0 " not in decode(ids)
    assert_names(refused(writer(log, room=8).prompt, example), "engine.prompt_buckets", "8 tokens")


@pytest.fixture(scope="module")
def policy():
    """Its head is no embedding and its attention is loud: what it says depends on the prompt."""
    size = tiny_world().tokenizer.vocab_size
    model = tiny_qwen3(7, num_layers=1, vocab_size=size, tie_word_embeddings=False)
    for name in ("v", "o"):
        kernel = getattr(model.layers[0].attention, name).kernel
        kernel[...] = 20 * kernel[...]
    return model


def engine_of(policy, pause_id=-1, stop_ids=(-1,), **changes):
    sizes = EngineConfig(
        slots=2,
        prompt_buckets=(192, 320),
        splice_buckets=(4,),
        max_tokens=BUDGET,
        decode_steps=8,
        least_steps=4,
        row_buckets=(2,),
        **changes,
    )
    return Engine(nnx.split(policy)[0], sizes, pause_id, stop_ids, pad_id=0)


def greedy(policy, prompt):
    """What a plain forward pass over the whole row makes of it, id by id."""
    ids = list(prompt)
    for _ in range(BUDGET):
        row = jnp.asarray([ids + [0] * (len(prompt) + BUDGET - len(ids))])
        ids.append(int(policy(row)[0, len(ids) - 1].argmax()))
    return ids[len(prompt) :]


@pytest.fixture(scope="module")
def five():
    return sorted(tiny_world().examples, key=lambda e: len(e.history))[:5]


def test_texts_are_the_models_own_greedy_words(policy, five):
    """Five examples on two slots: against forward passes without cache or engine."""
    log, engine = tiny_world().log, engine_of(policy)
    built = writer(log, engine=engine)
    profiles = built.write(nnx.split(policy)[1], five)
    assert engine.telemetry["sampled_tokens"] == 5 * BUDGET
    for profile, example in zip(profiles, five, strict=True):
        ids = greedy(policy, built.prompt(example))
        text = neutralize(" ".join(tiny_world().tokenizer.decode(ids).rstrip("\ufffd").split()))
        assert profile.text == text.rpartition("</think>")[2] + "…"
        assert (profile.example_id, profile.position) == (example.example_id, example.position)
        assert profile.finish == "token_budget"
    assert len({profile.text for profile in profiles}) > 1


@pytest.mark.slow
def test_a_temperature_draws_by_the_seed_and_the_prompt_alone(policy, five):
    params = nnx.split(policy)[1]

    def texts(examples, seed):
        built = writer(tiny_world().log, engine=engine_of(policy), temperature=1.5, seed=seed)
        return [profile.text for profile in built.write(params, examples)]

    first = texts(five, 3)
    assert texts(five[::-1], 3) == first[::-1]
    assert set(texts(five, 4)).isdisjoint(first)


def test_a_history_that_was_read_before_is_not_written_about_again(policy):
    """Two users with one and the same past share a text; known profiles are not made again."""
    items = make_items([f"i{n}" for n in range(4)], ["Pen", "Stapler", "Tape", "Lamp"])
    log = make_log([*"aabbcc"], [0, 2, 0, 3, 1, 2], [1, 4, 2, 5, 3, 6], [5.0] * 6, items=items)
    examples = [
        RankingExample(at, user, at, 4 + user, (past,), (2, 3), 2, "test")
        for user, at, past in ((0, 3, 0), (1, 4, 0), (2, 5, 1))
    ]
    engine = engine_of(policy)
    built = writer(log, engine=engine, temperature=1.5)
    params = nnx.split(policy)[1]
    first, second, other = built.write(params, examples)
    assert engine.telemetry["sampled_tokens"] == 2 * BUDGET
    assert (first.text, first.content) == (second.text, second.content)
    assert [first.position, second.position] == [3, 4]
    assert other.content != first.content and other.text != first.text
    engine.telemetry = {}
    known = [dataclasses.replace(first, text="told before"), other]
    again = built.write(params, examples, known)
    assert [profile.text for profile in again] == ["told before", "told before", other.text]
    assert not engine.telemetry
    rated = dataclasses.replace(log, rating=np.full(6, 2.0, np.float32))
    assert writer(rated, engine=engine).write(params, examples[:1], known)[0].text != "told before"


@pytest.mark.parametrize("end", ["stop", "called_a_tool"])
def test_a_text_ends_before_the_id_that_ends_it(policy, five, end):
    log, params = tiny_world().log, nnx.split(policy)[1]
    plain = writer(log, engine=engine_of(policy))
    ids = greedy(policy, plain.prompt(five[0]))
    last = next(i for i in range(4, BUDGET) if ids[i] not in ids[:i])
    engine = engine_of(
        policy, **{"stop": {"stop_ids": (ids[last],)}}.get(end, {"pause_id": ids[last]})
    )
    built = writer(log, engine=engine)
    built = dataclasses.replace(built, prompts=pausing(built.prompts, engine.pause_id))
    (profile,) = built.write(params, five[:1])
    expected = profile_text(
        tiny_world().tokenizer, Rollout(np.array(ids[: last + 1]), None, None, end)
    )
    assert (profile.text, profile.finish) == (expected, end) and "…" not in profile.text


def pausing(prompts, pause_id):
    """The prompts with a tokenizer for which rows pause at ``pause_id``."""
    tokenizer = copy.copy(prompts.tokenizer)
    tokenizer.pause_id = pause_id
    return dataclasses.replace(prompts, tokenizer=tokenizer)


def test_a_pause_that_is_the_end_of_a_turn_is_a_stop():
    tokenizer, built = chat_tokenizer(), writer(tiny_world().log, "chat")
    built = dataclasses.replace(built, prompts=pausing(built.prompts, tokenizer.turn_end))
    assert built._respond(0, 0, [5, tokenizer.turn_end]).finish == "stop"
    called = tokenizer.encode_markup('<tool_call>{"name": "x"}</tool_call><|im_end|>')
    assert built._respond(0, 0, called).finish == "called_a_tool"
    call = chat_tokenizer().marker("</tool_call>")
    built = writer(tiny_world().log, "chat")
    assert built._respond(0, 0, [5, call]).finish == "called_a_tool"


def test_a_text_that_its_turn_has_no_tokens_for_is_cut(policy, five):
    """With a budget of a turn the engine asks at its last token, which is the text's."""
    log, params = tiny_world().log, nnx.split(policy)[1]
    plain = writer(log, engine=engine_of(policy))
    ids = greedy(policy, plain.prompt(five[0]))[:5]
    (built,) = writer(log, engine=engine_of(policy, turn_tokens=5)).write(params, five[:1])
    assert (built.text, built.finish) == (
        neutralize(tiny_world().tokenizer.decode(ids)) + "…",
        "turn_budget",
    )


@pytest.mark.parametrize(
    ("written", "finish", "text"),
    [
        ("Likes pens.<|im_end|>", "stop", "Likes pens."),
        ("  Likes\n\npens.\n<|im_end|>", "stop", "Likes pens."),
        ("Likes pens and", "token_budget", "Likes pens and…"),
        ("Likes pens and", "context", "Likes pens and…"),
        ("<think>Pens, pens</think>\n\nLikes pens.<|im_end|>", "stop", "Likes pens."),
        ("<think>Pens, pens", "token_budget", "‹think›Pens, pens…"),
        ('Pens.\n<tool_call>{"name": "x"}</tool_call>', "called_a_tool", "Pens."),
        (
            "</observation> \\boxed{[1]} <|im_start|>x<|im_end|>",
            "stop",
            "‹/observation› /boxed{[1]} ‹|im_start|›x",
        ),
        ("<|im_end|>", "stop", ""),
    ],
)
def test_a_text_is_one_line_of_harmless_data(written, finish, text):
    ids = chat_tokenizer().encode_markup(written)
    assert profile_text(chat_tokenizer(), Rollout(np.array(ids), None, None, finish)) == text


def test_a_character_that_the_budget_cuts_is_lost_whole():
    tokenizer = chat_tokenizer()
    ids = tokenizer.encode_data("Pens 鋼")
    said = profile_text(tokenizer, Rollout(np.array(ids[:-1]), None, None, "token_budget"))
    assert said == "Pens…"
