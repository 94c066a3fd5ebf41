import dataclasses
import re
from fractions import Fraction

import jax
import numpy as np
import pytest

from agenticrec_jax.agent import protocol, scripted
from agenticrec_jax.agent.episodes import Agent
from agenticrec_jax.agent.prompts import CompactPrompts
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.training import demonstrations, warm_start
from agenticrec_jax.training.demonstrations import Mixture
from agenticrec_jax.training.packing import Packing
from agenticrec_jax.types import OBSERVATION, SAMPLED


@pytest.fixture(scope="module")
def agent():
    world = tiny_world()
    prompts = CompactPrompts(world.tokenizer, world.log.items, 4)
    return Agent(world.log, world.toolbox, world.artifacts, prompts), world.examples


def test_targets_never_reach_the_demonstrator(agent):
    agent, examples = agent
    mixture = Mixture(4)
    other = [
        dataclasses.replace(e, target=e.candidates[(e.target_number + 6) % 20]) for e in examples
    ]
    for i in range(30):
        drawn = [
            demonstrations.episode_group(agent, chosen[i % 5], np.random.default_rng(i), 2, mixture)
            for chosen in (examples, other)
        ]
        assert drawn[0] == drawn[1]


def test_observations_are_marked_and_the_rest_is_what_the_policy_writes(agent):
    agent, examples = agent
    group = demonstrations.episode_group(
        agent, examples[0], np.random.default_rng(1), 6, Mixture(4, 0, 0, 0)
    )
    tokenizer = agent.prompts.tokenizer
    for ids, origin in zip(group.ids, group.origin, strict=True):
        seen = [i for i, o in zip(ids, origin, strict=True) if o == OBSERVATION]
        written = tokenizer.decode([i for i, o in zip(ids, origin, strict=True) if o == SAMPLED])
        assert "<observation>" not in written and "</observation>" in tokenizer.decode(seen)
        assert len(protocol.parse_ranking(written.split("</tool_call>")[-1])) == 10


@pytest.mark.parametrize("kind", demonstrations.DRILLS)
def test_drills_answer_from_what_is_shown(agent, kind):
    prompts = agent[0].prompts
    group = demonstrations.drill_group(prompts, kind, np.random.default_rng(0), 3)
    for ids in group.ids:
        for block in prompts.tokenizer.decode(ids).split("<observation>")[1:]:
            observation, answer = block.split("</observation>")
            named = [label for label in scripted.LABELS if f"{label}:" in observation]
            assert named and "\\boxed{[" in answer
            if kind in ("short", "copy"):
                assert observation.split(":")[1] == answer.split("[")[1].split("]")[0]


def test_fused_answers_are_the_weighted_sums_of_what_is_shown(agent):
    """Each answer of the drill, computed from the text alone; several follow one observation."""
    prompts = agent[0].prompts
    group = demonstrations.drill_group(prompts, "fuse", np.random.default_rng(0), 6)
    answers = several = 0
    for ids in group.ids:
        for block in prompts.tokenizer.decode(ids).split("<observation>")[1:]:
            observation, *decisions = re.split("</observation>|</answer>", block)
            orders = scripted.read_orders(observation)
            for text in filter(None, decisions):
                weights = dict(re.findall(r"([a-z][a-z ]*[a-z]):×(\d)", text.split("rank by ")[1]))
                scores = {n: Fraction(0) for n in range(1, 21)}
                for label, weight in weights.items():
                    for place, number in enumerate(orders[label]):
                        scores[number] += Fraction(int(weight), 2 + place)
                ranking = sorted(scores, key=lambda n: (-scores[n], n))[:10]
                assert list(protocol.parse_ranking(f"{text}</answer>", 10, 20)) == ranking
                answers += 1
                several += len(weights) > 1
    assert answers == 6 * 2 * 3 and several > answers / 3


def test_a_share_of_the_episodes_fuses_and_says_its_weights(agent):
    agent, examples = agent
    lessons = warm_start.curriculum((((4,), 1),), fused=1.0)
    ((mixture,),) = [lesson.exercises for lesson in lessons]
    mixture = dataclasses.replace(mixture, no_tools=0, blank=0, preference=0)
    texts = []
    for i in range(8):
        group = demonstrations.episode_group(
            agent, examples[i], np.random.default_rng(i), 3, mixture
        )
        texts += [agent.prompts.tokenizer.decode(ids) for ids in group.ids]
    fused = [text for text in texts if "rank by" in text]
    assert fused and all(":×" in text.split("rank by")[1] for text in fused)
    assert not any(" then " in text for text in texts)


def test_a_lesson_goes_round_its_practices():
    lessons = warm_start.curriculum(((("short",), 2), ((6, 6, "merge"), 5)))
    source = warm_start.WarmStart(None, (), lessons)
    titles = Mixture(6)
    practised = [source.exercise_at(step) for step in range(source.steps)]
    assert practised == ["short", "short", titles, titles, "merge", titles, titles]
    labels = [source.progress_label(step) for step in (1, 2, 4)]
    assert labels == ["short", "titles-6", "merge"]
    with pytest.raises(IndexError):
        source.exercise_at(source.steps)


def test_batches_depend_on_the_step_alone_and_weigh_every_token_alike(agent):
    agent, examples = agent
    lessons = [warm_start.Lesson((Mixture(4),), 9)]
    source = warm_start.WarmStart(agent, examples, lessons, prompts=3, members=2)
    packing = Packing(4096)
    (first,), (again,) = source.batches(5, packing), source.batches(5, packing)
    assert np.array_equal(first.completions, again.completions)
    total = (first.sampled * first.weights[..., None]).sum()
    assert total == pytest.approx(1.0)
    assert not np.array_equal(first.completions, source.batches(6, packing)[0].completions)


def test_an_unknown_lesson_is_refused():
    assert_names(refused(warm_start.curriculum, ((("juggle",), 3),)), "lesson", "juggle")


def test_a_step_of_fewer_prompts_than_processes_is_refused(agent, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    lessons = warm_start.curriculum(((("short",), 1),))
    source = warm_start.WarmStart(*agent, lessons, prompts=2, members=1, seed=0)
    packing = Packing(4096, pad_id=agent[0].prompts.tokenizer.pad_id)
    assert_names(refused(source.batches, 0, packing), "prompts in a step: found 2", "3 processes")
