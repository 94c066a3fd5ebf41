"""Tasks: their kinds, and the answer to a preference question."""

import dataclasses

import pytest

from agenticrec_jax.agent.tasks import LESS, MORE, Task, correct_choice
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.world import tiny_world


@pytest.mark.parametrize(
    ("target_first", "kind", "letter"),
    [(True, MORE, "A"), (True, LESS, "B"), (False, MORE, "B"), (False, LESS, "A")],
)
def test_the_answer_to_a_question_is_the_targets_letter_or_the_others(target_first, kind, letter):
    example = tiny_world().examples[0]
    other = next(code for code in example.candidates if code != example.target)
    pair = (example.target, other) if target_first else (other, example.target)
    assert correct_choice(Task(dataclasses.replace(example, candidates=pair), kind)) == letter


def test_a_task_of_no_known_kind_is_refused():
    assert_names(refused(Task, tiny_world().examples[0], "best"), "kind", "'best'", "rank", "more")
