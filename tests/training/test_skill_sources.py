"""Rows of skills, recomputed from their text alone."""

import dataclasses
import re
from fractions import Fraction

import numpy as np
import pytest

from agenticrec_jax.agent import protocol, scripted
from agenticrec_jax.agent.episodes import Agent
from agenticrec_jax.agent.prompts import CompactPrompts
from agenticrec_jax.agent.scripts import RECTHINKER_SCRIPT
from agenticrec_jax.agent.tasks import LESS, MORE
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.training.judge import fit_judge
from agenticrec_jax.training.skill_rows import number_ids, pack_skills
from agenticrec_jax.training.skill_sources import (
    LEAST_SCORE,
    ORDERED,
    Episodes,
    Fusing,
    Reading,
    draw_order,
)
from agenticrec_jax.training.skills import NO_CLASS
from agenticrec_jax.types import OBSERVATION, SAMPLED


@pytest.fixture(scope="module")
def world():
    return tiny_world()


@pytest.fixture(scope="module")
def agent(world):
    prompts = CompactPrompts(world.tokenizer, world.log.items, 4)
    return Agent(world.log, world.toolbox, world.artifacts, prompts)


PAIRS = {"candidates": 2, "lengths": (2,), "tasks": (MORE, LESS)}


@pytest.fixture(scope="module")
def judge(world, agent):
    def words(item):
        return tuple(agent.prompts.title_ids(item))

    return fit_judge(world.log, world.examples, world.artifacts.fit_range, words)


def source_groups(source, groups=6, members=4):
    rng = np.random.default_rng(3)
    return [source.group(rng, members) for _ in range(groups)]


def test_fused_answers_are_the_weighted_sums_of_what_is_shown(agent):
    """Answers and labels of decisions with weights, and of those without, from the text alone."""
    decode = agent.prompts.tokenizer.decode
    several = merged = 0
    for group in source_groups(Fusing(agent.prompts), 20):
        orders = scripted.read_orders(decode(group.prompt))
        assert 1 <= len(orders) <= 4
        for row in group.rows:
            text = decode(row.ids)
            thought = text.split("rank by ")[1].split("<")[0]
            answer = protocol.parse_ranking(text)
            weights = dict(re.findall(r"([a-z][a-z ]*[a-z]):×(\d)", thought))
            ((worth, listed),) = row.lists
            assert tuple(listed) == answer
            if weights:
                scores = [Fraction(0)] * 20
                for label, weight in weights.items():
                    for place, number in enumerate(orders[label]):
                        scores[number - 1] += Fraction(int(weight), 2 + place)
                assert list(answer) == sorted(range(1, 21), key=lambda n: -scores[n - 1])[:10]
                power = [max(float(score), LEAST_SCORE) ** 10.0 for score in scores]
                np.testing.assert_allclose(np.exp(worth), power, rtol=1e-6)
                several += len(weights) > 1
            else:
                labels = [part.split(":")[0] for part in thought.split(" then ")]
                chain = [n for label in labels for n in orders[label]]
                assert list(answer) == list(dict.fromkeys([*chain, *range(1, 21)]))[:10]
                merged += 1
    assert several > 10 and merged > 10


def test_orders_have_the_labels_and_the_candidates_of_the_agent(agent):
    """RecThinker's: other labels, and 10 candidates."""
    labels = (*RECTHINKER_SCRIPT.labels, scripted.DRAFT)
    source = Fusing(agent.prompts, labels, candidates=10, fused=1.0)
    seen = set()
    for group in source_groups(source, 20):
        orders = scripted.read_orders(agent.prompts.tokenizer.decode(group.prompt))
        seen |= set(orders)
        assert set(sum(orders.values(), ())) <= set(range(1, 11))
        named = group.readouts["order_label"]
        assert {labels[i] for i in named[named != NO_CLASS]} == set(orders)
        for row in group.rows:
            ((worth, listed),) = row.lists
            assert len(worth) == 10 and sorted(listed) == list(range(1, 11))
            weights = row.readouts["order_weight"]
            assert (weights[:, len(labels) :] == NO_CLASS).all() and weights.max() > 0
            assert np.isnan(row.readouts["fused_score"][:, 10:]).all()
    assert seen == set(labels)


def test_fusing_can_be_of_many_long_orders_with_weights_alone(agent):
    source = Fusing(agent.prompts, fused=1.0, orders=(3, 5), lengths=(10,), least=2, power=16.0)
    decode = agent.prompts.tokenizer.decode
    counts = set()
    for group in source_groups(source, 20):
        orders = scripted.read_orders(decode(group.prompt))
        counts.add(len(orders))
        assert {len(numbers) for numbers in orders.values()} == {10}
        for row in group.rows:
            text = decode(row.ids)
            assert text.count("×") >= 2
            ((worth, listed),) = row.lists
            # The best has 16 times the log of what it has over the second.
            first, second = np.exp(np.sort(worth)[::-1][:2] / 16.0)
            best = listed[0]
            assert first == pytest.approx(np.exp(worth[best - 1] / 16.0)) and first >= second
    assert counts == {3, 4, 5}


def test_letters_answer_the_question_by_the_list_before_them(agent):
    """MORE is answered by the first of a pair's list and LESS by its last, in drill and episode."""
    asked = set()
    for group in source_groups(Fusing(agent.prompts, **PAIRS), 30):
        prompt = agent.prompts.tokenizer.decode(group.prompt)
        less = "less likely" in prompt
        assert less != ("more likely" in prompt)
        orders = scripted.read_orders(prompt)
        for row in group.rows:
            text = agent.prompts.tokenizer.decode(row.ids)
            *numbers, named = re.search(r"puts (\d),(\d), first; (.*),</think>", text).groups()
            likelier, other = numbers
            asked_for = f"less{other}" if less else f"more{likelier}"
            assert named == f"more{likelier}, less{other}, {asked_for}"
            letter = protocol.parse_choice(text)
            assert letter == {"1": "A", "2": "B"}[numbers[less]]
            asked.add((less, letter))
            ((worth, listed),) = row.lists
            assert [str(number) for number in listed] == numbers
            assert worth[listed[0] - 1] >= worth[listed[1] - 1]
            weighed = np.flatnonzero(row.readouts["order_weight"][:, 0] != NO_CLASS)
            if "×" in text:
                before = agent.prompts.tokenizer.decode(row.ids[: weighed[0] + 1])
                assert len(weighed) == 2 and before.endswith("puts ")
            else:
                assert orders[text.split("rank by ")[1].split(":")[0]][0] == listed[0]
    assert len(asked) == 4


def test_readouts_of_orders_name_label_place_and_weight(agent):
    tokenizer = agent.prompts.tokenizer
    for group in source_groups(Fusing(agent.prompts, fused=1.0), 10):
        label, place = (group.readouts[name][:, 0] for name in ("order_label", "order_place"))
        orders = scripted.read_orders(tokenizer.decode(group.prompt))
        seen = {}
        for token, index, at in zip(group.prompt, label, place, strict=True):
            if index != NO_CLASS:
                number = int(tokenizer.decode([token]).strip(","))
                assert orders[ORDERED[index]][at] == number
                seen.setdefault(ORDERED[index], []).append(number)
        assert {name: tuple(numbers) for name, numbers in seen.items()} == orders
        for row in group.rows:
            text = tokenizer.decode(row.ids)
            named = dict(re.findall(r"([a-z][a-z ]*[a-z]):×(\d)", text.split("rank by ")[1]))
            weights = row.readouts["order_weight"]
            at = np.flatnonzero(weights[:, 0] != NO_CLASS)
            assert len(at) == 10
            # Each stands just before a number of the answer.
            assert np.isin(np.asarray(row.ids)[at + 1], number_ids(tokenizer)).all()
            assert weights[at].tolist() == [[int(named.get(x, 0)) for x in ORDERED]] * 10
            scores = row.readouts["fused_score"][at[0]]
            assert scores.mean() == pytest.approx(0, abs=1e-5)
            answer = protocol.parse_ranking(text)
            assert scores[answer[0] - 1] == scores.max()


def test_readings_label_titles_and_numbers_by_the_judge(world, agent, judge):
    source = Reading(agent, judge, world.examples, sharpness=3.0)
    tokenizer = agent.prompts.tokenizer
    by_prompt = {
        tuple(agent.prompts.build(e.history, e.candidates, tools)): e
        for e in world.examples
        for tools in ((), agent.toolbox.schemas())
    }
    for group in source_groups(source):
        example = by_prompt[tuple(group.prompt)]
        scores = judge.scores(example)
        candidate = group.readouts["candidate_score"][:, 0]
        at = np.flatnonzero(~np.isnan(candidate))
        texts = [tokenizer.decode([group.prompt[i]]) for i in at]
        assert texts == [f"{n}," for n in range(1, 21)]
        np.testing.assert_allclose(np.corrcoef(candidate[at], scores)[0, 1], 1.0, atol=1e-6)
        tokens = group.readouts["token_score"][:, 0]
        parts = judge.token_scores(example)
        for index, item, part in zip(at, example.candidates, parts, strict=True):
            title = agent.prompts.title_ids(item)
            assert list(group.prompt[index - len(title) : index]) == title
            given = tokens[index - len(title) : index]
            np.testing.assert_allclose(given * source._deviations[0], part, rtol=1e-5)
        assert np.isnan(tokens[at[-1] :]).all()
        for row in group.rows:
            assert re.fullmatch(r"<think> draft:(\d+,){10};", tokenizer.decode(row.ids))
            np.testing.assert_allclose(row.lists[0][0], 3 * scores)


def test_drafts_are_drawn_by_their_worth():
    """Two candidates of worths 3 to 1: the first is first in three draws of four."""
    rng = np.random.default_rng(0)
    first = [draw_order(rng, np.log([3.0, 1.0]))[0] for _ in range(4000)]
    assert np.mean(np.array(first) == 1) == pytest.approx(0.75, abs=0.03)


def test_episodes_begin_with_a_draft_and_rank_by_what_they_say(world, agent, judge):
    source = Episodes(agent, judge, world.examples, preference=0.0, no_tools=0.2)
    tokenizer = agent.prompts.tokenizer
    ranked_by_draft = 0
    for group in source_groups(source, 20):
        for row in group.rows:
            text = tokenizer.decode(row.ids)
            assert text.startswith("<think> draft:")
            (_, draft), (_, ranking) = row.lists
            assert protocol.parse_ranking(text.split("</tool_call>")[-1]) == tuple(ranking)
            origin = np.asarray(row.origin)
            assert ("<observation>" in text) == bool((origin == OBSERVATION).any())
            ranked_by_draft += tuple(ranking) == tuple(draft)
    assert ranked_by_draft > 3


@pytest.mark.parametrize("skill", ["answering", "concluding"])
def test_behind_a_given_list_only_its_conclusion_is_learned(world, agent, judge, skill):
    """The same texts as where the list is learned too."""
    decode = agent.prompts.tokenizer.decode
    source = {
        "answering": Fusing(agent.prompts, **PAIRS),
        "concluding": Episodes(agent, judge, world.examples, preference=1.0),
    }[skill]
    whole = source_groups(source)
    behind = source_groups(dataclasses.replace(source, list_given=True))
    for group, other in zip(behind, whole, strict=True):
        assert group.prompt == other.prompt
        for row, full in zip(group.rows, other.rows, strict=True):
            assert row.ids == full.ids and not row.lists
            learned = [i for i, of in zip(row.ids, row.origin, strict=True) if of == SAMPLED]
            likelier, other_number, word, number, letter = re.fullmatch(
                r" first; more(\d), less(\d), (more|less)(\d),</think>"
                r"<answer>\\boxed\{([AB])\}</answer>",
                decode(learned),
            ).groups()
            assert f" puts {likelier},{other_number}, first" in decode(row.ids)
            assert f" {word} likely" in decode(group.prompt)
            assert number == (likelier if word == "more" else other_number)
            assert letter == "AB"[int(number) - 1]


def test_episodes_about_a_pair_list_it_before_the_letter(world, agent, judge):
    source = Episodes(agent, judge, world.examples, preference=1.0)
    for group in source_groups(source, 10):
        less = "less likely" in agent.prompts.tokenizer.decode(group.prompt)
        asked_for = "less" if less else "more"
        for row in group.rows:
            text = agent.prompts.tokenizer.decode(row.ids)
            (_, draft), (_, ranking) = row.lists
            assert len(draft) == len(ranking) == 2
            likelier, other = ranking
            named = f" puts {likelier},{other}, first; more{likelier}, less{other},"
            assert f"{named} {asked_for}{ranking[less]},</think>" in text
            letter = protocol.parse_choice(text.split("</tool_call>")[-1])
            assert letter == "AB"[ranking[less] - 1]


def test_targets_never_reach_a_row(world, agent, judge):
    other = [
        dataclasses.replace(e, target=e.candidates[(e.target_number + 6) % 20])
        for e in world.examples
    ]
    for kind in (Reading, Episodes):
        drawn = [
            kind(agent, judge, examples).group(np.random.default_rng(1), 2)
            for examples in (world.examples, other)
        ]
        assert drawn[0].prompt == drawn[1].prompt
        assert [row.ids for row in drawn[0].rows] == [row.ids for row in drawn[1].rows]


@pytest.mark.parametrize(
    "kind", ["fusing", "pairing", "answering", "reading", "episodes", "concluding"]
)
def test_a_batch_has_its_labels_at_the_numbers_of_lists(world, agent, judge, kind):
    source = {
        "fusing": Fusing(agent.prompts),
        "pairing": Fusing(agent.prompts, **PAIRS),
        "answering": Fusing(agent.prompts, list_given=True, **PAIRS),
        "reading": Reading(agent, judge, world.examples),
        "episodes": Episodes(agent, judge, world.examples, preference=0.5),
        "concluding": Episodes(agent, judge, world.examples, preference=1.0, list_given=True),
    }[kind]
    groups = source_groups(source)
    batch = pack_skills(groups, source, world.tokenizer)
    assert batch.prompts.shape[1] % source.prompt_bucket == 0
    assert set(batch.readouts) == {readout.name for readout in source.readouts}
    ids = number_ids(world.tokenizer)
    for p, group in enumerate(groups):
        assert batch.prompts[p][batch.prompt_valid[p]].tolist() == list(group.prompt)
        for g, row in enumerate(group.rows):
            length = len(row.ids)
            assert batch.completions[p, g, :length].tolist() == list(row.ids)
            assert batch.valid[p, g].sum() == length
            assert (batch.sampled[p, g, :length] == (np.asarray(row.origin) == SAMPLED)).all()
            at = np.flatnonzero(batch.labels[p, g].sum(axis=-1))
            listed = [n for _, numbers in row.lists for n in numbers]
            assert batch.completions[p, g, at].tolist() == [ids[n - 1] for n in listed]
            np.testing.assert_allclose(batch.labels[p, g, at].sum(axis=-1), 1.0, rtol=1e-5)
            start = 0
            for worth, numbers in row.lists:
                chance = np.exp(worth - np.max(worth)) / np.exp(worth - np.max(worth)).sum()
                np.testing.assert_allclose(
                    batch.labels[p, g, at[start], : len(worth)], chance, atol=1e-6
                )
                start += len(numbers)
