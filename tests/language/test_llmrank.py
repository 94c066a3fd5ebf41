"""LLMRank: its prompts by hand, its merging beside the authors' scores, good and bad models."""

import random

import numpy as np
import pytest

from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import make_items
from agenticrec_jax.language.answers import UNREADABLE
from agenticrec_jax.language.llmrank import PROMPTS, LLMRank, merged
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.world import tiny_world
from tests.language.completers import Fake, listed_candidates

EXAMPLE = RankingExample(
    example_id=7,
    user=0,
    position=7,
    time=9,
    history=(0, 1, 2),
    candidates=(3, 4),
    target=4,
    split="",
)
ITEMS = make_items(list("abcde"), ["Blue Pen", "Ink", "Glue", "Stick of\nRed Chalk", "Cap"])

PAST = {
    "sequential": """In the past I took these items, in this order:
1. Blue Pen
2. Ink
3. Glue

Now there are 2 candidates that I could take next:
1. Cap
2. Stick of Red Chalk
""",
    "in_context": """In the past I took these items, in this order:
1. Blue Pen
2. Ink

Had I asked you for a recommendation then, the right one would have been Glue. \
Now I have taken Glue, and there are 2 candidates that I could take next:
1. Cap
2. Stick of Red Chalk
""",
}
ASKED = """Rank these 2 candidates by how likely I am to take each of them next, judging by what I \
took before. Think step by step."""
NOTE = "Note that the item that I took last is Glue."
END = """End with the line "Ranking:" and below it the numbers of all 2 candidates, the most \
likely one first, each on a line of its own. Rank no item that is not listed."""


@pytest.mark.parametrize(
    ("prompt", "lines"),
    [
        ("sequential", [PAST["sequential"], ASKED, END]),
        ("recency", [PAST["sequential"], ASKED, NOTE, END]),
        ("in_context", [PAST["in_context"], ASKED, END]),
    ],
)
def test_a_prompt_reads_as_it_should(prompt, lines):
    assert LLMRank(ITEMS, prompt).text(EXAMPLE, order=[2, 1]) == "\n".join(lines)


def test_a_single_item_of_history_is_no_example_in_context():
    example = RankingExample(7, 0, 7, 9, (2,), (3, 4), 4, "")
    texts = {prompt: LLMRank(ITEMS, prompt).text(example, [1, 2]) for prompt in PROMPTS}
    assert texts["in_context"] == texts["recency"] != texts["sequential"]


def authors_scores(lists, candidates):
    """Scores as the authors' code adds them: -10000 for each list that lacks a candidate."""
    scores = np.full((len(lists), candidates), -10000.0)
    for row, ranking in enumerate(lists):
        for place, number in enumerate(ranking):
            scores[row, number - 1] = candidates - place
    return scores.sum(0)


def test_merging_sorts_by_the_scores_of_the_authors():
    rng = random.Random(0)
    for _ in range(300):
        candidates = rng.randint(1, 8)
        numbers = list(range(1, candidates + 1))
        lists = [rng.sample(numbers, rng.randint(0, candidates)) for _ in range(rng.randint(1, 4))]
        scores = authors_scores(lists, candidates)
        named = {number for ranking in lists for number in ranking}
        ranking = merged(lists, candidates)
        assert set(ranking) == named and len(ranking) == len(named)
        # A stable sort by score keeps ties in the order of the numbers.
        assert list(ranking) == sorted(sorted(named), key=lambda number: -scores[number - 1])


def test_merging_by_hand():
    # 1: 3 + 2 + 1; 2: 2 + 3 + 3; 3: 1 + 1 + 2
    assert merged([[1, 2, 3], [2, 1, 3], [2, 3, 1]], 3) == (2, 1, 3)
    assert merged([[3, 1], [], [1, 3]], 3) == (1, 3)
    assert merged([[], []], 3) == ()


def with_target_first(chat):
    """Knows each target, and ranks the others in the order of the list."""
    world = tiny_world()
    example = next(e for e in world.examples if e.example_id == chat.key[0])
    titles = listed_candidates(chat)
    target = world.log.items.title[example.target]
    (best,) = [number for number, title in titles.items() if title == target][:1]
    return "Ranking:\n" + "\n".join(map(str, [best, *(n for n in titles if n != best)]))


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_model_that_knows_the_target_ranks_it_first(prompt):
    world = tiny_world()
    examples = world.examples[:8]
    titles = world.log.items.title
    examples = [e for e in examples if len({titles[i] for i in e.candidates}) == 20]
    fake = Fake(with_target_first)
    answers = LLMRank(world.log.items, prompt, title_words=99).rank(fake, examples)
    assert len(fake.chats) == 3 * len(examples) and len(examples) > 3
    assert [answer.rank(e) for answer, e in zip(answers, examples, strict=True)] == [1] * len(
        answers
    )
    assert all(len(answer.ranking) == 20 and answer.invalid_reason is None for answer in answers)
    assert {(fake.decoding.temperature, a.unreadable, a.calls) for a in answers} == {(0.2, 0, 0)}


def test_a_model_that_copies_the_list_gains_nothing_by_the_target_and_each_round_is_shuffled():
    """By position alone the target's rank is that of chance, whatever its number is."""
    world = tiny_world()
    fake = Fake(lambda chat: "\n".join(map(str, listed_candidates(chat))))
    method = LLMRank(world.log.items, rounds=1)
    ranks = [
        answer.rank(example)
        for seed in range(12)
        for answer, example in zip(
            LLMRank(world.log.items, rounds=1, seed=seed).rank(fake, world.examples[:40]),
            world.examples[:40],
            strict=True,
        )
    ]
    assert 9.7 < np.mean(ranks) < 11.3  # 10.5 +- 2 x 5.77 / sqrt(480)
    orders = {tuple(method.order(world.examples[0], number)) for number in range(5)}
    assert len(orders) == 5 and all(sorted(order) == list(range(1, 21)) for order in orders)
    assert method.order(world.examples[0], 1) == method.order(world.examples[0], 1)


def test_junk_is_a_miss_that_is_counted():
    world = tiny_world()
    junk = Fake(lambda chat: "I am a teapot.")
    (answer,) = LLMRank(world.log.items).rank(junk, world.examples[:1])
    assert answer.ranking == () and answer.rank(world.examples[0]) == 0
    assert answer.invalid_reason == UNREADABLE and answer.unreadable == 3
    assert answer.texts == ("I am a teapot.",) * 3


def test_a_round_of_junk_leaves_the_ranking_to_the_others():
    world = tiny_world()
    some = Fake(lambda chat: "" if chat.key[1] == 1 else "2\n1")
    method = LLMRank(world.log.items)
    (answer,) = method.rank(some, world.examples[:1])
    orders = [method.order(world.examples[0], number) for number in (0, 2)]
    expected = merged([[order[1], order[0]] for order in orders], 20)
    assert answer.ranking == expected and answer.invalid_reason is None and answer.unreadable == 1


def test_a_target_that_is_not_named_is_a_miss():
    example = tiny_world().examples[0]
    method = LLMRank(tiny_world().log.items, rounds=1)
    order = method.order(example, 0)
    others = [i + 1 for i, number in enumerate(order) if number != example.target_number]
    fake = Fake(lambda chat: "\n".join(map(str, others)))
    (answer,) = method.rank(fake, [example])
    assert len(answer.ranking) == 19 and answer.rank(example) == 0
    assert answer.invalid_reason is None


def test_options_are_checked():
    assert_names(refused(LLMRank, ITEMS, "icl"), "prompt", "icl", "in_context")
    assert_names(refused(LLMRank, ITEMS, rounds=0), "rounds", 0)
    assert_names(refused(LLMRank, ITEMS, title_words=0), "title_words", 0)
