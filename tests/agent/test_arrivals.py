"""Prepared episodes with a scripted policy: each has its own agent, and its end is its own."""

import dataclasses

import pytest

from agenticrec_jax.agent.arrivals import Arrival, prepare_episode, prepare_tools, run_prepared
from agenticrec_jax.agent.tasks import Task
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.tools.base import Toolbox, object_schema
from tests.agent.actors import LOOK, Actor, list_with_target_at, tiny_agent


class Arriving(Actor):
    """An engine of one slot: each request is played when it arrives."""

    def generate(self, params, requests, respond, *, on_rollout, arrivals=None, **options):
        played = 0
        waiting = list(requests)
        while waiting or (arrivals and (waiting := list(arrivals(1)))):
            request = waiting.pop(0)
            self.prompts.append(request.prompt)
            on_rollout(played, 0, self._play(played, 0, respond, []))
            played += 1
        return []

    def __init__(self, tokenizer, *turns):
        super().__init__(tokenizer, turns)
        self.prompts = []


@pytest.fixture(scope="module")
def agent():
    return tiny_agent()


class Says:
    """A tool of a given answer, which counts the views it prepares for."""

    name, description, parameters = "candidates_analyze", "Says it.", object_schema()

    def __init__(self, text):
        self.text = text
        self.prepared = []

    def prepare(self, views):
        self.prepared.append(len(views))

    def __call__(self, view):
        return self.text


def run(agents, turns, first=0, fails=(), abandoned=lambda i: False):
    """Trajectories or errors of an episode of each agent, of which ``first`` begin the call."""
    tasks = [Task(example) for example in tiny_world().examples[: len(agents)]]
    prepared = [prepare_episode(*pair) for pair in zip(agents, tasks, strict=True)]
    prepare_tools(prepared)
    ended = {}

    def arrival(i):
        def on_trajectory(trajectory):
            if i in fails:
                raise ArithmeticError("planted")
            ended[i] = trajectory

        return Arrival(
            prepared[i],
            on_trajectory,
            on_error=lambda error: ended.update({i: error}),
            abandoned=lambda: abandoned(i),
        )

    later = [arrival(i) for i in range(first, len(agents))]
    actor = Arriving(agents[0].prompts.tokenizer, *turns)
    run_prepared(
        actor,
        None,
        [arrival(i) for i in range(first)],
        temperature=0.0,
        seed=0,
        arrivals=lambda free: [later.pop(0) for _ in range(min(free, len(later)))],
    )
    assert actor.prompts == [one.prompt for one in prepared]
    return [ended[i] for i in range(len(agents))]


@pytest.mark.parametrize("first", [0, 2])
def test_each_episode_has_the_tools_of_its_own_agent(agent, first):
    tools = [Says("one"), Says("two")]
    one, two = (dataclasses.replace(agent, toolbox=Toolbox([tool])) for tool in tools)
    ended = run([one, two, one], [LOOK, list_with_target_at(1)], first)
    assert [t.calls[0].observation for t in ended] == ["one", "two", "one"]
    assert all(t.valid and t.reward is None for t in ended)
    assert [tool.prepared for tool in tools] == [[2], [1]]
    ids = [example.example_id for example in tiny_world().examples[:3]]
    assert [t.example_id for t in ended] == ids


def test_an_error_at_the_end_of_an_episode_is_its_own(agent):
    ended = run([agent] * 3, [LOOK, list_with_target_at(1)], fails={1})
    assert isinstance(ended[1], ArithmeticError)
    assert ended[0].valid and ended[2].valid


def test_an_abandoned_episode_ends_at_its_next_call(agent):
    """The second of three calls is the first after nobody waits any more."""
    asked = []

    def abandoned(i):
        asked.append(i)
        return i == 0 and len(asked) > 1

    turns = [LOOK, LOOK, LOOK, list_with_target_at(1)]
    ended, answered = run([agent] * 2, turns, abandoned=abandoned)
    assert ended.finish == "abandoned" and not ended.valid and len(ended.calls) == 1
    assert answered.valid and len(answered.calls) == 3
    assert asked == [0, 0, 1, 1, 1]
