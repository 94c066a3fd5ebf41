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
from agenticrec_jax.generation.sampling import NO_FILTERS, Filters
from agenticrec_jax.testing.chat import chat_tokenizer
from agenticrec_jax.testing.models import tiny_qwen3
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.tokenizers.base import spellings
from agenticrec_jax.tokenizers.load import load_tokenizer

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

SEED, STEPS, BUDGET, MEMBERS = 4, 4, 112, 4
SEEN = "it says \\boxed{[1,2"  # an observation that quotes an opening begins nothing
LATER = 13  # tokens of the second request before its call: the first is in its list by then


def scripts(kind, begun, unread=()):
    """Ids that rows of each of two requests are told to write, -1 where they are free or listen.

    ``unread`` is what is sampled instead of -1 between the pieces of an observation, and dropped.
    """
    tokenizer, *_ = known(kind)
    seen = [*unread, *[-1] * (len(observed(kind)) - len(unread))]
    think = tokenizer.encode_markup("x")
    return [
        [*think * times, tokenizer.pause_id, *seen, *tokenizer.encode_markup(begun)]
        for times in (1, LATER)
    ]


def observed(kind):
    tokenizer, *_ = known(kind)
    return tokenizer.encode_markup("\n") + tokenizer.encode_data(SEEN)


def prompt_of(kind):
    """The prompt: it has an opening, as the chat style's instructions have."""
    return tuple(known(kind)[0].encode_markup(f"rank: {OPENING}"))


def pushed(rows, start):
    """``sampling.sample`` with high logits for the ids of the scripts, from ``start`` on."""
    table = np.full((len(rows), 512), -1)
    for request, ids in enumerate(rows):
        table[request, start : start + len(ids)] = ids
    numbers = jnp.arange(len(rows), dtype=jnp.uint32)[:, None]
    keys_of = sampling.row_keys(jnp.uint32(SEED), numbers, jnp.arange(MEMBERS))
    table, real = jnp.array(table), sampling.sample

    def sample(logits, keys, positions, draw):
        request = (keys[:, None, None] == keys_of).all(-1).any(-1).argmax(-1)
        scripted = jnp.arange(logits.shape[1]) == table[request, positions][:, None]
        return real(jnp.where(scripted, logits + 1e4, logits), keys, positions, draw)

    return sample


@functools.cache
def policy(kind):
    tokenizer, *_ = known(kind)
    more = 7 if kind == "chat" else 0  # rows without a token, as published policies have them
    model = tiny_qwen3(3, num_layers=1, vocab_size=tokenizer.vocab_size + more)
    graphdef, params = nnx.split(model)
    return graphdef, jax.tree.map(lambda x: x * 6 if x.ndim > 1 else x, params)


@functools.cache
def engine(kind, constrained, begun, unread=(), piece=64):
    """One for each script: what is sampled is compiled into its programs."""
    tokenizer, constraint, _ = known(kind)
    sizes = EngineConfig(
        slots=2 * MEMBERS,
        prompt_buckets=(32,),
        splice_buckets=(piece,),
        max_tokens=BUDGET,
        decode_steps=STEPS,
        least_steps=2,
        row_buckets=(2 * MEMBERS,),
        window_buckets=(160,),
    )
    return Engine(
        policy(kind)[0],
        sizes,
        tokenizer.pause_id,
        [i for i in tokenizer.stop_ids if i != tokenizer.pause_id],
        tokenizer.pad_id,
        constraint=constraint if constrained else None,
    )


def played(
    kind,
    constrained,
    temperature=1.0,
    filters=NO_FILTERS,
    choices=(12, 20),
    begun=OPENING,
    **pieces,
):
    """Rollouts of two requests that call, read, and begin an answer; [requests][members]."""
    prompt, rows = prompt_of(kind), scripts(kind, begun, pieces.get("unread", ()))
    requests = [Request(prompt, MEMBERS, (i,), count) for i, count in enumerate(choices)]
    built = engine(kind, constrained, begun, **pieces)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sampling, "sample", pushed(rows, len(prompt)))
        groups = built.generate(
            policy(kind)[1],
            requests,
            lambda *_: Reply(tuple(observed(kind))),
            temperature=temperature,
            seed=SEED,
            filters=filters,
        )
    assert built.telemetry["splice_dispatches"] >= 2, "one of them while lists are being written"
    return groups


DRAWS = {
    "T=1": (1.0, Filters()),
    "T=3": (3.0, Filters()),
    "greedy": (0.0, Filters()),
    "filtered": (1.5, Filters(top_k=6, top_p=0.9, min_p=0.01)),
}


@pytest.mark.slow
def test_what_is_sampled_between_pieces_of_an_observation_begins_nothing():
    unread = tuple(known("compact")[0].encode_markup(OPENING))
    whole = played("compact", True)
    cut = played("compact", True, unread=unread, piece=1)
    for a, b in zip(sum(whole, []), sum(cut, []), strict=True):
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("draw", DRAWS)
def test_every_answer_of_a_random_policy_is_valid(kind, draw):
    """Over dispatches of four steps and the splices of others; of 12 and of 20 candidates."""
    temperature, filters = DRAWS[draw]
    tokenizer, *_ = known(kind)
    groups = played(kind, True, temperature, filters)
    for group, script, choices in zip(groups, scripts(kind, OPENING), (12, 20), strict=True):
        for rollout in group:
            final = tokenizer.decode(rollout.ids[len(script) :].tolist())
            assert rollout.finish == "stop" and valid(OPENING + final, choices), final
            assert len(rollout.ids) > len(script) + 2 * STEPS
        different = {tuple(rollout.ids.tolist()) for rollout in group}
        assert len(different) == (1 if temperature == 0 else MEMBERS)
        assert_rescored(kind, script, group[0], choices, temperature, filters)


def assert_rescored(kind, script, rollout, choices, temperature, filters):
    """Log-probs in the list are of a plain forward's logits over the ids that may come."""
    prompt, texts, listed = prompt_of(kind), known(kind)[-1], ""
    whole = jnp.array([[*prompt, *rollout.ids.tolist()]])
    logits = forward(nnx.merge(*policy(kind)), jnp.pad(whole, ((0, 0), (0, 160 - whole.shape[1]))))
    logits = np.asarray(logits, np.float64)[0, len(prompt) - 1 :, : len(texts)]
    for position in range(len(script), len(rollout.ids)):
        if listed.endswith(protocol.ANSWER_CLOSE):
            break  # only the end of the turn may follow
        allowed = [bool(text) and extendable(kind, listed + text, choices) for text in texts]
        scores = np.where(allowed, logits[position] / (temperature or 1), -np.inf)
        scores[~unfiltered(scores, filters)] = -np.inf
        i = int(rollout.ids[position])
        want = scores[i] - scores.max() - np.log(np.exp(scores - scores.max()).sum())
        assert abs(rollout.logprobs[position] - want) < 1e-4
        assert temperature or i == scores.argmax()
        listed += texts[i]
    assert listed.count("]}") == 1


forward = nnx.jit(lambda model, ids: model(ids))


def unfiltered(scores, filters):
    """By sorting: top-k, then top-p, then min-p."""
    order = np.argsort(-scores)
    mass = np.exp(scores - scores.max())
    if filters.top_k:
        mass[order[filters.top_k :]] = 0
    ahead = np.cumsum(mass[order]) - mass[order]
    mass[order[ahead >= filters.top_p * mass.sum()]] = 0
    return (mass > 0) & (mass >= filters.min_p)


@pytest.mark.parametrize("kind", OWN)
def test_free_rows_of_a_constraining_engine_are_those_of_one_without(kind):
    plain, free = (played(kind, on, choices=(0, 0)) for on in (False, True))
    assert_equal(plain, free)
    tokenizer, *_ = known(kind)
    texts = [tokenizer.decode(rollout.ids.tolist()) for group in plain for rollout in group]
    assert not any(valid(text, 20) for text in texts), "a random policy writes none by itself"


def assert_equal(groups, others):
    for group, other in zip(groups, others, strict=True):
        for a, b in zip(group, other, strict=True):
            np.testing.assert_array_equal(a.ids, b.ids)
            np.testing.assert_array_equal(a.logprobs, b.logprobs)


def test_observations_and_prompts_begin_no_answer():
    """They quote an opening; what the policy writes then is what it writes without a constraint."""
    assert_equal(*(played("chat", on, begun="and so") for on in (False, True)))
