"""Constrained rankings: the protocol's own parser judges them, under both kinds of tokenizer."""

import functools
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.agent import protocol
from agenticrec_jax.agent.answers import ranking_constraint
from agenticrec_jax.generation import sampling
from agenticrec_jax.generation.engine import Engine, EngineConfig, Reply, Request
from agenticrec_jax.generation.sampling import Filters
from agenticrec_jax.models.text import spellings
from agenticrec_jax.models.tokenizers import load_tokenizer
from agenticrec_jax.testing.chat import chat_tokenizer
from agenticrec_jax.testing.models import tiny_qwen3
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.types import SAMPLED

OPENING = protocol.ANSWER_OPEN + "\\boxed{["
SHAPE = re.compile(r"((?:\d+, ?)*)(\d*)(.*)", re.S)
KINDS = {
    "compact": lambda: tiny_world().tokenizer,
    "chat": lambda: chat_tokenizer(),
    "published": lambda: load_tokenizer(os.environ["AGENTICREC_QWEN3_TOKENIZER"]),
}
OWN = ("compact", "chat")
ALL = (*OWN, pytest.param("published", marks=pytest.mark.peer))


@functools.cache
def known(kind):
    """A tokenizer, its constraint, and the text of each id."""
    tokenizer = KINDS[kind]()
    return tokenizer, ranking_constraint(tokenizer), spellings(tokenizer)


def extendable(kind, listed, choices):
    """Whether the text after ``\\boxed{[`` can become a valid answer: by trying, and parsing it.

    Only the compact tokenizer's marker ends a row, so that it cannot be spelled letter by letter.
    """
    done, digits, rest = SHAPE.fullmatch(listed).groups()
    numbers = [int(n) for n in re.findall(r"\d+", done)]
    if done.endswith(", ") and rest.startswith(" "):
        return False
    ends = "]}" + protocol.ANSWER_CLOSE
    if rest:
        whole = rest in ("]", "]}", ends) or kind != "compact"
        tries = [done + digits + ends] if ends.startswith(rest) and whole else []
    elif not digits:
        tries = [done + completed(numbers, choices)]
    else:
        begun = [n for n in range(1, choices + 1) if str(n).startswith(digits)]
        tries = [done + f"{n}," + completed([*numbers, n], choices) for n in begun]
    return any(valid(OPENING + text, choices) for text in tries)


def completed(numbers, choices):
    others = [n for n in range(1, choices + 1) if n not in numbers]
    count = max(0, min(10, choices) - len(numbers))
    return "".join(f"{n}," for n in others[:count]) + "]}" + protocol.ANSWER_CLOSE


def valid(text, choices):
    try:
        return bool(protocol.parse_ranking(text, min(10, choices), choices))
    except protocol.ProtocolError:
        return False


def at_opening(kind, choices, ids=None):
    tokenizer, constraint, _ = known(kind)
    at = constraint.begin(jnp.array(choices))
    for i in tokenizer.encode_markup(OPENING) if ids is None else ids:
        at = constraint.after(at, jnp.full(len(choices), i))
    return at


def listing(kind, ids, choices=20):
    """The texts that may follow some ids, shortened to whether they are only those of a list."""
    _, constraint, texts = known(kind)
    allowed = np.asarray(constraint.allowed(at_opening(kind, [choices], ids), len(texts)))[0]
    return {texts[i] for i in np.flatnonzero(allowed)} <= {
        text for text in texts if text[:1].isdigit()
    }


@pytest.mark.parametrize("kind", ALL)
def test_any_walk_through_the_allowed_ids_is_a_valid_ranking(kind):
    """Uniformly over the allowed ids, whatever way of splitting they make; an independent judge."""
    tokenizer, constraint, texts = known(kind)
    choices = np.repeat([20, 12, 10, 3, 31, 1], 40)
    at, rng = at_opening(kind, choices), np.random.default_rng(0)
    allowed = jax.jit(lambda at: constraint.allowed(at, len(texts) + 5))
    after = jax.jit(constraint.after)
    rows = [[] for _ in choices]
    for _ in range(80):
        mask = np.asarray(allowed(at))
        assert mask.any(1).all() and not mask[[not ended(r, tokenizer) for r in rows], -5:].any()
        chosen = np.where(mask, rng.random(mask.shape), 0).argmax(1)
        for row, i in zip(rows, chosen.tolist(), strict=True):
            if not ended(row, tokenizer):
                row.append(i)
        at = after(at, jnp.array(chosen))
    assert all(ended(row, tokenizer) for row in rows)
    for row, count in zip(rows, choices.tolist(), strict=True):
        assert valid(
            tokenizer.decode([*tokenizer.encode_markup(OPENING), *row]).split("<|")[0], count
        )
    assert len({tuple(row) for row in rows[:40]}) == 40


def ended(ids, tokenizer):
    return bool(ids) and ids[-1] in tokenizer.stop_ids


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("choices", [20, 12, 4])
def test_an_id_is_allowed_where_its_text_can_become_a_valid_ranking(kind, choices):
    tokenizer, constraint, texts = known(kind)
    rng = np.random.default_rng(choices)
    for _ in range(2):
        at, listed = at_opening(kind, [choices]), ""
        while not listed.endswith(protocol.ANSWER_CLOSE):
            allowed = np.asarray(constraint.allowed(at, len(texts)))[0]
            expected = [bool(text) and extendable(kind, listed + text, choices) for text in texts]
            np.testing.assert_array_equal(allowed, expected, err_msg=listed)
            chosen = int(rng.choice(np.flatnonzero(allowed)))
            listed += texts[chosen]
            at = constraint.after(at, jnp.array([chosen]))


@pytest.mark.parametrize("kind", ALL)
def test_the_opening_is_seen_however_it_is_split(kind):
    tokenizer, _, texts = known(kind)
    canonical = tokenizer.encode_markup(OPENING)
    pieces = [texts.index(char) for char in OPENING]
    assert listing(kind, canonical) and listing(kind, pieces) and len(pieces) > len(canonical)
    mixed = [*pieces[:3], *tokenizer.encode_markup("\n"), *canonical]
    assert listing(kind, mixed), "a broken beginning before it does not hide it"
    assert listing(kind, [*tokenizer.encode_markup(protocol.ANSWER_OPEN + " \n\\boxed{[")])
    spaced = [*pieces[:-1], texts.index(" "), pieces[-1]]
    assert not listing(kind, spaced), "nor does the parser read it"
    assert not listing(kind, canonical[:-1]) and not listing(kind, canonical, choices=0)


@pytest.mark.parametrize("kind", ALL)
def test_after_a_list_in_a_thought_the_policy_is_free_and_can_list_again(kind):
    tokenizer, constraint, texts = known(kind)
    bare = tokenizer.encode_markup("so \\boxed{[")
    assert listing(kind, bare, 2)
    at = at_opening(kind, [2], [*bare, *(texts.index(char) for char in "2,1]}")])
    assert np.asarray(constraint.allowed(at, len(texts))).sum() > 0.9 * len(texts)
    again = [*bare, *(texts.index(char) for char in "2,1]}"), *tokenizer.encode_markup(OPENING)]
    assert listing(kind, again, 2)


# --- through the engine: the policy is random, and only told to begin an answer ---

STEPS, BUDGET, MEMBERS = 4, 96, 8
SEEN = "it says \\boxed{[1,2"  # an observation that quotes an opening begins nothing


def pushed(rows, start):
    """``sampling.sample`` with a high logit for the ids of ``rows`` from position ``start`` on."""
    script, real = (
        jnp.full(512, -1).at[start : start + len(rows)].set(jnp.array(rows)),
        sampling.sample,
    )

    def sample(logits, keys, positions, *draw):
        told = jnp.arange(logits.shape[1]) == script[positions][:, None]
        return real(jnp.where(told, logits + 1e4, logits), keys, positions, *draw)

    return sample


@functools.cache
def policy(kind):
    tokenizer, *_ = known(kind)
    more = 7 if kind == "chat" else 0  # rows without a token, as published policies have them
    model = tiny_qwen3(3, num_layers=1, vocab_size=tokenizer.vocab_size + more)
    graphdef, params = nnx.split(model)
    params = jax.tree.map(lambda x: x * 6 if x.ndim > 1 else x, params)
    return graphdef, params


def played(
    kind, constrained, temperature=1.0, filters=sampling.NO_FILTERS, choices=12, begun=OPENING
):
    """Rollouts that call, read an observation, and begin an answer; [members]."""
    tokenizer, constraint, _ = known(kind)
    call = [*tokenizer.encode_markup("<think>"), tokenizer.pause_id]
    seen = tokenizer.encode_markup("\n") + tokenizer.encode_data(SEEN)
    prompt = tuple(tokenizer.encode_markup(f"rank: {OPENING}"))
    rows = [*call, *([-1] * len(seen)), *tokenizer.encode_markup(begun)]
    config = EngineConfig(
        slots=MEMBERS,
        prompt_buckets=(32,),
        splice_buckets=(64,),
        max_tokens=BUDGET,
        decode_steps=STEPS,
        least_steps=2,
        row_buckets=(MEMBERS,),
        window_buckets=(160,),
    )
    stop = [i for i in tokenizer.stop_ids if i != tokenizer.pause_id]
    engine = Engine(
        policy(kind)[0],
        config,
        tokenizer.pause_id,
        stop,
        tokenizer.pad_id,
        constraint=constraint if constrained else None,
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sampling, "sample", pushed(rows, len(prompt)))
        request = Request(prompt, MEMBERS, (1,), choices)
        (group,) = engine.generate(
            policy(kind)[1],
            [request],
            lambda *_: Reply(tuple(seen)),
            temperature=temperature,
            seed=4,
            filters=filters,
        )
    return prompt, rows, group


DRAWS = {
    "T=1": (1.0, Filters()),
    "T=3": (3.0, Filters()),
    "greedy": (0.0, Filters()),
    "filtered": (1.5, Filters(top_k=6, top_p=0.9, min_p=0.01)),
}


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("draw", DRAWS)
def test_every_answer_of_a_random_policy_is_valid(kind, draw):
    temperature, filters = DRAWS[draw]
    tokenizer, _, texts = known(kind)
    prompt, rows, group = played(kind, True, temperature, filters)
    for rollout in group:
        ids = rollout.ids.tolist()
        assert rollout.finish == "stop"
        assert [i for i, o in zip(ids, rollout.origin, strict=True) if o == SAMPLED][0] == rows[0]
        final = tokenizer.decode(ids[len(rows) - len(tokenizer.encode_markup(OPENING)) :])
        assert valid(final, 12), final
        assert len(ids) > len(rows) + 2 * STEPS, "over several dispatches"
    different = {tuple(rollout.ids.tolist()) for rollout in group}
    assert len(different) == (1 if temperature == 0 else MEMBERS)
    assert_rescored(kind, prompt, rows, group, temperature, filters)


def assert_rescored(kind, prompt, rows, group, temperature, filters):
    """Log-probs in the list are of a plain forward's logits over the ids that may come."""
    _, _, texts = known(kind)
    model = nnx.merge(*policy(kind))
    for rollout in group[:2]:
        whole = jnp.array([[*prompt, *rollout.ids.tolist()]])
        logits = np.asarray(model(jnp.pad(whole, ((0, 0), (0, 160 - whole.shape[1])))))[0]
        listed = ""
        for place in range(len(rows), len(rollout.ids)):
            if listed.endswith(protocol.ANSWER_CLOSE):
                break  # only the end of the turn may follow
            allowed = [bool(text) and extendable(kind, listed + text, 12) for text in texts]
            scores = np.where(allowed, logits[len(prompt) + place - 1, : len(texts)], -np.inf)
            scores = np.float64(scores) / (temperature or 1)
            scores[~kept(scores, filters)] = -np.inf
            i = int(rollout.ids[place])
            want = scores[i] - scores.max() - np.log(np.exp(scores - scores.max()).sum())
            assert abs(rollout.logprobs[place] - want) < 1e-4
            assert temperature or i == scores.argmax()
            listed += texts[i]


def kept(scores, filters):
    """By sorting: top-k, then top-p, then min-p."""
    order = np.argsort(-scores)
    mass = np.exp(scores - scores.max())
    if filters.top_k:
        mass[order[filters.top_k :]] = 0
    ahead = np.cumsum(mass[order]) - mass[order]
    mass[order[ahead >= filters.top_p * mass.sum()]] = 0
    return (mass > 0) & (mass >= filters.min_p)


@pytest.mark.parametrize("kind", OWN)
def test_a_free_row_of_a_constraining_engine_is_that_of_one_without(kind):
    plain, free = (played(kind, on, choices=0)[-1] for on in (False, True))
    for a, b in zip(plain, free, strict=True):
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_array_equal(a.logprobs, b.logprobs)
    tokenizer, *_ = known(kind)
    finals = [tokenizer.decode(r.ids) for r in plain]
    assert not any(valid(text, 12) for text in finals), "a random policy writes none by itself"


def test_an_observation_and_a_prompt_begin_no_answer():
    """They quote an opening; what the policy writes instead of its own goes on as without."""
    plain, watched = (played("chat", on, begun="and so")[-1] for on in (False, True))
    for a, b in zip(plain, watched, strict=True):
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-6)
