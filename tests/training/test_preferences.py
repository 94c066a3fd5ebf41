"""Fixed answers about pairs: the questions, the policy's loss on them, and that it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from agenticrec_jax.agent.episodes import Agent
from agenticrec_jax.agent.prompts import CompactPrompts
from agenticrec_jax.losses import dpo_preference_loss, for_batch, logistic_preference_loss
from agenticrec_jax.testing.models import tiny_qwen3
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.training.learner import init_state, make_update
from agenticrec_jax.training.logprobs import make_scorer
from agenticrec_jax.training.mining import HardPair, preference_tasks
from agenticrec_jax.training.packing import Packing
from agenticrec_jax.training.preferences import Preferences, choice_questions, first_rank_questions
from agenticrec_jax.training.references import ReferencePolicy

PACKING = Packing(1500, prompt_buckets=128, completion_buckets=16)
LOGISTIC = for_batch(logistic_preference_loss)
SOFTMAX_DPO = for_batch(dpo_preference_loss, beta=0.6)


@pytest.fixture(scope="module")
def agent():
    world = tiny_world()
    prompts = CompactPrompts(world.tokenizer, world.log.items, title_tokens=2)
    return Agent(world.log, world.toolbox, world.artifacts, prompts)


@pytest.fixture(scope="module")
def examples():
    return {example.example_id: example for example in tiny_world().examples}


@pytest.fixture(scope="module")
def pairs(examples):
    """Six pairs; the negative is the first other candidate."""
    chosen = list(examples.values())[:6]
    others = [next(c for c in e.candidates if c != e.target) for e in chosen]
    return [HardPair(e.example_id, e.target, c) for e, c in zip(chosen, others, strict=True)]


def tiny():
    model = tiny_qwen3(3, num_layers=1, vocab_size=tiny_world().tokenizer.vocab_size)
    model.embedding[...] = 6 * model.embedding[...]
    return model


@pytest.fixture(scope="module")
def policy():
    return nnx.split(tiny())


@pytest.fixture(scope="module")
def questions_by_form(agent, examples):
    """Functions from a pair to its questions, by their form."""
    return {
        "choices": choice_questions(agent, examples, seed=3),
        "first_places": first_rank_questions(agent, examples, negatives=4, seed=3),
    }


def source(pairs, ask, size=6, epochs=1):
    return Preferences(pairs, epochs, size, 1, ask)


def test_the_preferred_letter_is_first_and_is_the_target_for_more_only(
    agent, examples, questions_by_form
):
    decode = agent.prompts.tokenizer.decode
    example = next(iter(examples.values()))
    negatives = [c for c in example.candidates if c != example.target]
    seen = set()
    for negative in negatives:
        pair = HardPair(example.example_id, example.target, negative)
        tasks = preference_tasks([pair], examples, 3)
        for question, task in zip(questions_by_form["choices"](pair), tasks, strict=True):
            assert list(question.prompt) == agent.prompt(task)
            shown_as = "AB"[task.example.candidates.index(pair.positive)]
            other = "AB"[task.example.candidates.index(pair.negative)]
            right = [shown_as, other] if task.kind == "more" else [other, shown_as]
            said = [decode(ids) for ids in question.answers]
            assert said == [f"<answer>\\boxed{{{letter}}}</answer>" for letter in right]
            seen.add((task.kind, right[0]))
    assert len(seen) == 4


def test_first_places_name_the_target_the_pairs_negative_and_others(
    agent, examples, questions_by_form, pairs
):
    decode = agent.prompts.tokenizer.decode
    drawn = set()
    for pair in pairs:
        example = examples[pair.example_id]
        (question,) = questions_by_form["first_places"](pair)
        said = [decode(ids) for ids in question.answers]
        numbers = [int(text.removeprefix("<answer>\\boxed{[").removesuffix(",")) for text in said]
        items = [example.candidates[number - 1] for number in numbers]
        assert items[:2] == [pair.positive, pair.negative] and len(set(items)) == 5
        drawn.add(tuple(numbers[2:]))
    assert len(drawn) > 1 and questions_by_form["first_places"](pair) == [question]


def test_a_pass_asks_each_pair_once_and_weighs_questions_alike(pairs, questions_by_form):
    epochs_of_pairs = source(pairs, questions_by_form["choices"], size=4, epochs=2)
    assert epochs_of_pairs.steps == 3
    total = [
        sum(float(b.weights[:, 0].sum()) for b in epochs_of_pairs.batches(step, PACKING))
        for step in (0, 2)
    ]
    assert total == pytest.approx([1, 1])
    items = [pair for step in range(3) for pair in epochs_of_pairs.items_at(step)]
    assert sorted(items[:6], key=pairs.index) == pairs == sorted(items[6:], key=pairs.index)
    assert items[:6] != items[6:]


@jax.jit
def logits_of(params, rows):
    graphdef, _ = nnx.split(tiny())
    return nnx.merge(graphdef, params)(rows)


def scores_by_rows(params, questions):
    """Log-probs of whole answers, each a row of its own through the plain model, in float64."""
    rows = [(q.prompt, answer) for q in questions for answer in q.answers]
    padded = np.zeros((len(rows), 192), np.int32)
    for row, (prompt, answer) in zip(padded, rows, strict=True):
        row[: len(prompt) + len(answer)] = [*prompt, *answer]
    scores, tables = [], np.asarray(logits_of(params, padded), np.float64)
    for logits, (prompt, answer) in zip(tables, rows, strict=True):
        logits = logits[len(prompt) - 1 :][: len(answer)]
        totals = np.log(np.exp(logits).sum(axis=-1))
        scores.append((logits[np.arange(len(answer)), answer] - totals).sum())
    return np.array(scores).reshape(len(questions), -1)


def shifted(policy):
    """Other weights than the policy's: those of a reference that it has left."""
    graphdef, params = policy
    return graphdef, jax.tree.map(lambda x: 1.05 * x, params)


def batches_of(epochs_of_pairs, reference=None):
    batches = epochs_of_pairs.batches(0, PACKING)
    return [reference(batch) for batch in batches] if reference else batches


def one_update(policy, loss_fn, batches, rate=0.0):
    update = make_update(policy[0], loss_fn, optax.sgd(rate))
    state = init_state(jax.tree.map(jnp.copy, policy[1]), optax.sgd(rate))
    return update(state, batches)


def test_the_logistic_loss_is_that_of_scores_of_separate_rows(policy, pairs, questions_by_form):
    batches = batches_of(source(pairs, questions_by_form["choices"]))
    assert len(batches) > 1  # so that micro-batches add up
    _, actual = one_update(policy, LOGISTIC, batches)
    scores = scores_by_rows(policy[1], [q for p in pairs for q in questions_by_form["choices"](p)])
    margins = scores[:, 0] - scores[:, 1]
    expected = np.log1p(np.exp(-margins)).sum() / len(pairs)  # both directions, mean over pairs
    assert np.abs(margins).max() > 0.3
    assert actual["loss"][0] == pytest.approx(expected, rel=1e-4)
    assert actual["preference_margin"] == pytest.approx((margins.sum(), 12), abs=1e-3)
    assert actual["preference_accuracy"] == ((margins > 0).sum(), 12)


def test_softmax_dpo_is_that_of_scores_of_separate_rows(policy, pairs, questions_by_form):
    graphdef, params = shifted(policy)
    reference = ReferencePolicy(make_scorer(graphdef), params, None)
    batches = batches_of(source(pairs, questions_by_form["first_places"]), reference)
    _, actual = one_update(policy, SOFTMAX_DPO, batches)
    questions = [q for p in pairs for q in questions_by_form["first_places"](p)]
    gains = scores_by_rows(policy[1], questions) - scores_by_rows(params, questions)
    leads = 0.6 * (gains[:, 1:] - gains[:, :1])
    expected = np.log1p(np.exp(leads).sum(axis=1)).mean()
    assert np.abs(leads).max() > 0.01
    assert actual["loss"][0] == pytest.approx(expected, rel=1e-4)
    assert actual["preference_margin"] == pytest.approx((-leads.max(axis=1).sum(), 6), abs=1e-3)


@pytest.mark.parametrize("form", ["choices", pytest.param("first_places", marks=pytest.mark.slow)])
def test_training_raises_the_margins_of_its_own_pairs(policy, pairs, questions_by_form, form):
    graphdef, params = policy
    loss_fn, reference = LOGISTIC, None
    if form == "first_places":
        loss_fn, reference = SOFTMAX_DPO, ReferencePolicy(make_scorer(graphdef), params, None)
    optimizer = optax.adam(3e-3)
    update = make_update(graphdef, loss_fn, optimizer)
    state = init_state(jax.tree.map(jnp.copy, params), optimizer)
    batches = batches_of(source(pairs, questions_by_form[form]), reference)
    lines = []
    for _ in range(60):
        state, metrics = update(state, batches)
        lines.append({name: total / count for name, (total, count) in metrics.items()})
    assert lines[0]["preference_accuracy"] < 0.8 and lines[-1]["preference_accuracy"] == 1
    assert lines[-1]["preference_margin"] > lines[0]["preference_margin"] + 1
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    if form == "choices":
        questions = [q for pair in pairs for q in questions_by_form[form](pair)]
        scores = [scores_by_rows(weights, questions) for weights in (params, state.params)]
        before, after = (np.subtract(*s.T).reshape(-1, 2) for s in scores)  # pairs, MORE and LESS
        assert (after > np.maximum(before, 0)).all()


def test_what_answers_begin_with_alike_has_no_gradient(policy, pairs, questions_by_form):
    """So the form of an answer is neither taught nor forgotten: only which of the two."""
    whole = batches_of(source(pairs[:2], questions_by_form["choices"], size=2))

    def without_beginning(batch):
        a, b = batch.completions[:, 0], batch.completions[:, 1]
        alike = np.cumsum(a != b, axis=1) == 0
        sampled = batch.sampled & ~alike[:, None]
        assert 0 < sampled.sum() < batch.sampled.sum()
        return dataclasses.replace(batch, sampled=sampled)

    (first, _), (second, _) = (
        one_update(policy, LOGISTIC, batches, rate=1.0)
        for batches in (whole, [without_beginning(batch) for batch in whole])
    )
    for a, b in zip(*map(jax.tree.leaves, (first.params, second.params)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
