"""TALLRec: its questions, and its scores beside plain rows of the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.language.completion import Chat
from agenticrec_jax.language.policy import chat_ids
from agenticrec_jax.language.tallrec import YesNoPrompts, YesNoQuestions, yes_scores
from agenticrec_jax.testing.chat import chat_tokenizer
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.models import tiny_qwen3
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.training.logprobs import make_scorer
from agenticrec_jax.training.packing import Packing
from agenticrec_jax.types import SAMPLED

WORLD = tiny_world()
EXAMPLE = WORLD.examples[0]
PACKING = Packing(1, 64, 16)


def prompts_of(style, words=20):
    tokenizer = WORLD.tokenizer if style == "compact" else chat_tokenizer()
    return YesNoPrompts(tokenizer, WORLD.log.items, words)


def test_a_question_reads_as_it_should():
    prompts = prompts_of("chat")
    title = WORLD.log.items.title
    ids = prompts.beginning(EXAMPLE.history) + prompts.question(EXAMPLE.target)
    history = "".join(f"h{n}. {title[item]}\n" for n, item in enumerate(EXAMPLE.history, 1))
    text = (
        f"<|im_start|>user\nTaken before, oldest first:\n{history}Candidate: "
        f"{title[EXAMPLE.target]}\nDoes the user take the candidate next? Answer Yes or No."
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompts.tokenizer.decode(ids) == text
    question = text.removeprefix("<|im_start|>user\n").partition("<|im_end|>")[0]
    assert text == prompts.tokenizer.decode(
        chat_ids(prompts.tokenizer, Chat((1,), (("user", question),)))
    )
    compact = prompts_of("compact")
    ids = compact.beginning(EXAMPLE.history) + compact.question(EXAMPLE.target)
    text = compact.tokenizer.decode(ids)
    assert text.startswith("<user>") and text.endswith("<assistant>") and text.count("<") == 2


@pytest.mark.parametrize("style", ["chat", "compact"])
def test_only_the_answer_is_imitated(style):
    prompts = prompts_of(style)
    yes, no = prompts.answers
    assert yes != no
    for taken, answer in ((True, yes), (False, no)):
        demonstration = prompts.answered(EXAMPLE.target, taken)
        assert demonstration.ids[-1] == answer
        assert (demonstration.origin == SAMPLED).tolist() == [False] * (
            len(demonstration.ids) - 1
        ) + [True]


def test_one_id_for_both_answers_is_refused():
    class Same:
        file = "tokenizer.json"

        def encode_data(self, text):
            return [3]

    prompts = YesNoPrompts(Same(), WORLD.log.items)
    assert_names(refused(lambda: prompts.answers), "tokenizer.json")


def test_scores_are_the_log_odds_of_plain_rows():
    prompts = prompts_of("compact")
    model = tiny_qwen3(vocab_size=prompts.tokenizer.vocab_size)
    graphdef, params = nnx.split(model)
    scores = yes_scores(make_scorer(graphdef), params, prompts, EXAMPLE, PACKING)
    yes, no = prompts.answers
    for number in (1, 7, 20):
        row = prompts.beginning(EXAMPLE.history)
        row += prompts.question(EXAMPLE.candidates[number - 1])
        logits = jax.nn.log_softmax(model(jnp.array([row])))[0, -1]
        np.testing.assert_allclose(scores[number - 1], logits[yes] - logits[no], atol=1e-4)
    assert scores.shape == (20,) and len(set(scores.tolist())) > 10


def test_a_step_asks_about_the_target_and_others_drawn_anew():
    prompts = prompts_of("compact")
    source = YesNoQuestions(WORLD.examples[:6], 2, 3, 7, prompts=prompts, negatives=2)
    assert source.steps == 4
    packing = Packing(100_000, 64, 16)
    seen = []
    for step in range(source.steps):
        (batch,) = source.batches(step, packing)
        rows = np.asarray(batch.weights) > 0
        assert rows.sum() == 9 and np.isclose(np.asarray(batch.weights).sum(), 1)
        (again,) = source.batches(step, packing)
        assert np.array_equal(batch.completions, again.completions)
        answers = np.asarray(batch.completions)[np.asarray(batch.sampled)].reshape(-1, 3)
        assert (answers == [prompts.answers[0], *[prompts.answers[1]] * 2]).all()
        seen.append(np.asarray(batch.completions))
    targets = {tuple(prompts.question(e.target)) for e in WORLD.examples[:6]}
    asked = {
        tuple(row[: len(target)].tolist())
        for batch in seen
        for row in batch[:, 0]
        for target in targets
    }
    assert targets <= asked


def test_negatives_change_from_epoch_to_epoch():
    prompts = prompts_of("compact")
    source = YesNoQuestions(WORLD.examples[:1], 4, 1, 7, prompts=prompts, negatives=1)
    packing = Packing(100_000, 64, 16)
    drawn = [source.batches(step, packing)[0].completions[0, 1].tobytes() for step in range(4)]
    assert len(set(drawn)) > 1
