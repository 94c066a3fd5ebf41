"""Titles as answers: the questions, their batches, and scores beside plain rows of the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.language.titles import (
    TitleAnswers,
    TitlePreferences,
    TitlePrompts,
    candidate_group,
    likelihoods,
    title_logprobs,
)
from agenticrec_jax.testing.chat import chat_tokenizer
from agenticrec_jax.testing.models import tiny_qwen3
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.training.logprobs import make_scorer
from agenticrec_jax.training.packing import Packing
from agenticrec_jax.types import SAMPLED

WORLD = tiny_world()
EXAMPLE = WORLD.examples[0]
PACKING = Packing(1, 128, 16)
WIDE = Packing(1_000_000, 128, 16)


def prompts_of(style):
    tokenizer = WORLD.tokenizer if style == "compact" else chat_tokenizer()
    return TitlePrompts(tokenizer, WORLD.log.items)


def test_a_question_reads_as_it_should():
    prompts = prompts_of("chat")
    title = WORLD.log.items.title
    history = "".join(f"\nh{n}. {title[item]}" for n, item in enumerate(EXAMPLE.history, 1))
    listed = "".join(f"\n{n}. {title[item]}" for n, item in enumerate(EXAMPLE.candidates, 1))
    text = (
        f"<|im_start|>user\nTaken before, oldest first:{history}\nCandidates:{listed}\nWhich "
        "candidate does the user take next? Answer with its title.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert prompts.tokenizer.decode(prompts.prompt(EXAMPLE)) == text
    compact = prompts_of("compact")
    text = compact.tokenizer.decode(compact.prompt(EXAMPLE))
    assert text.startswith("<user>") and text.endswith("<assistant>") and text.count("<") == 2


@pytest.mark.parametrize("style", ["chat", "compact"])
def test_an_answer_is_the_title_with_the_end_of_the_turn(style):
    prompts = prompts_of(style)
    answer = prompts.answer(EXAMPLE.target)
    *title, end = answer.ids.tolist()
    assert (answer.origin == SAMPLED).all() and end == prompts.tokenizer.stop_ids[0]
    text = prompts.tokenizer.decode(title)
    assert text.strip().casefold() == WORLD.log.items.title[EXAMPLE.target].casefold()
    ids = prompts.prompt(EXAMPLE)  # the title stands in it with the same ids
    assert any(ids[i : i + len(title)] == title for i in range(len(ids)))


def test_scores_are_the_likelihoods_of_plain_rows():
    prompts = prompts_of("compact")
    model = tiny_qwen3(vocab_size=prompts.tokenizer.vocab_size, num_layers=1)
    graphdef, params = nnx.split(model)
    group = candidate_group(prompts, EXAMPLE)
    logprobs = title_logprobs(make_scorer(graphdef), params, group, PACKING)
    scores = likelihoods(logprobs)
    question = prompts.prompt(EXAMPLE)
    titles = [prompts.answer(item).ids for item in EXAMPLE.candidates]
    rows = np.zeros((20, len(question) + max(map(len, titles))), int)
    for row, title in zip(rows, titles, strict=True):
        row[: len(question) + len(title)] = [*question, *title]
    plain = np.asarray(jax.nn.log_softmax(model(jnp.asarray(rows))))
    for number in range(1, 21):
        title = titles[number - 1]
        steps = len(question) - 1 + np.arange(len(title))
        expected = plain[number - 1, steps, title]
        np.testing.assert_allclose(logprobs[number - 1], expected, atol=1e-4)
        np.testing.assert_allclose(scores[number - 1], expected.mean(), atol=1e-4)
    assert scores.shape == (20,) and len(set(scores.tolist())) > 10


def test_a_step_answers_each_question_by_its_target():
    prompts = prompts_of("compact")
    source = TitleAnswers(WORLD.examples[:5], 2, 4, 7, prompts=prompts)
    assert source.steps == 3
    expected = {
        (tuple(prompts.prompt(e)), tuple(prompts.answer(e.target).ids)) for e in WORLD.examples[:5]
    }
    seen = []
    for step in range(source.steps):
        for batch in source.batches(step, WIDE):
            learned = batch.weights[..., None] * batch.sampled
            np.testing.assert_allclose(learned.sum(), 1, rtol=1e-5)  # a mean over tokens
            for p in np.flatnonzero(batch.weights[:, 0]):
                question = batch.prompts[p][batch.prompt_valid[p]]
                answer = batch.completions[p, 0][batch.sampled[p, 0]]
                seen.append((tuple(question.tolist()), tuple(answer.tolist())))
    assert len(seen) == 10 and set(seen) == expected


def test_a_target_is_preferred_to_other_candidates_drawn_anew():
    prompts = prompts_of("compact")
    source = TitlePreferences(WORLD.examples[:1], 6, 1, 7, prompts=prompts, negatives=3)
    others = {tuple(prompts.answer(c).ids) for c in EXAMPLE.candidates if c != EXAMPLE.target}
    drawn = []
    for step in range(source.steps):
        (batch,) = source.batches(step, WIDE)
        (again,) = source.batches(step, WIDE)
        assert np.array_equal(batch.completions, again.completions)
        assert batch.weights.tolist() == [[1.0] * 4]
        rows = zip(batch.completions[0], batch.sampled[0], strict=True)
        preferred, *rejected = [tuple(row[sampled].tolist()) for row, sampled in rows]
        assert preferred == tuple(prompts.answer(EXAMPLE.target).ids)
        assert set(rejected) <= others and len(set(rejected)) == 3
        drawn.append(frozenset(rejected))
    assert len(set(drawn)) > 1
