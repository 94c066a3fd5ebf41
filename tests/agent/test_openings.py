"""Stratified groups: which tool each member is forced to, and what becomes of the call."""

import numpy as np

from agenticrec_jax.agent.openings import forced_openings
from agenticrec_jax.types import OBSERVATION, SAMPLED
from tests.agent.actors import list_with_target_at, play, tiny_agent

TOOLS = ["a", "b", "c", "d", "e"]


def forced_tools(**options):
    prompts = tiny_agent().prompts
    openings = forced_openings(prompts, TOOLS, **options)
    texts = [prompts.tokenizer.decode(ids).rpartition('"name":"')[2] for ids in openings]
    assert all(text.endswith('","arguments":{') for text in texts if text)
    return [text.partition('"')[0] for text in texts]


def test_members_take_the_tools_in_turn_and_steps_go_on_where_the_last_ended():
    assert forced_tools(members=4, forced=3, step=0) == ["a", "b", "c", ""]
    assert forced_tools(members=4, forced=3, step=1) == ["d", "e", "a", ""]
    assert forced_tools(members=7, forced=7, step=0) == ["a", "b", "c", "d", "e", "a", "b"]
    assert forced_tools(members=2, forced=0, step=5) == ["", ""]
    prompts = tiny_agent().prompts
    assert forced_openings(prompts, (), members=2, forced=2, step=0) == ()


def test_a_forced_call_is_made_and_has_no_gradient():
    """Two members are forced to the first two tools and write the arguments; one is free."""
    agent = tiny_agent()
    answer = f"<think>so</think>{list_with_target_at(2)}"
    arguments = "}}</tool_call>"
    named = '"item_name":"1"}}</tool_call>'
    first, second, free = play(
        agent, [arguments, answer], [named, answer], [answer], forced_calls=2
    )
    names = [[call.name for call in t.calls] for t in (first, second, free)]
    assert names == [[agent.toolbox.names[0]], [agent.toolbox.names[1]], []]
    assert all(call.ok for t in (first, second) for call in t.calls)
    assert first.valid and second.valid and free.rank == first.rank == 2
    tokenizer = agent.prompts.tokenizer
    sampled = tokenizer.decode(first.ids[first.origin == SAMPLED])
    assert sampled == arguments + answer
    opening = tokenizer.encode_markup(
        f'<think></think><tool_call>{{"name":"{agent.toolbox.names[0]}","arguments":{{'
    )
    assert first.ids[: len(opening)].tolist() == opening
    assert (first.origin[: len(opening)] == OBSERVATION).all()
    assert (free.origin == SAMPLED).all()
    assert np.all(first.origin[len(opening) : len(opening) + 3] == SAMPLED)


def test_without_tools_or_forced_calls_members_are_free():
    answer = f"<think>so</think>{list_with_target_at(1)}"
    for agent, forced in ((tiny_agent(use_tools=False), 1), (tiny_agent(), 0)):
        (trajectory,) = play(agent, [answer], forced_calls=forced)
        assert (trajectory.origin == SAMPLED).all() and trajectory.valid


def skills_after(forced, steps=60):
    """Chances of a right answer after each of two tools, after policy gradients on groups of 8.

    The policy calls the first tool in 99.5% of its own calls, and begins with an even chance of
    a right answer after it and one of 18% after the other.
    """
    rng = np.random.default_rng(0)
    prompts = tiny_agent().prompts
    skills = np.array([0.0, -1.5])  # logits of a right answer after each tool

    def chances():
        return 1 / (1 + np.exp(-skills))

    for step in range(steps):
        openings = forced_openings(prompts, ["a", "b"], members=8, forced=forced, step=step)
        texts = [prompts.tokenizer.decode(ids) for ids in openings]
        calls = np.where(rng.random(8) < 0.995, 0, 1)
        forced_names = [text.rpartition('"name":"')[2][:1] for text in texts]
        pairs = zip(forced_names, calls, strict=True)
        calls = np.array(["ab".index(name) if name else call for name, call in pairs])
        right = rng.random(8) < chances()[calls]
        advantages = right - right.mean()
        for tool in range(2):
            skills[tool] += (advantages * (right - chances()[tool]))[calls == tool].sum()
    return chances()


def test_planted_what_to_do_with_a_tool_that_is_hardly_called_is_learned_if_it_is_forced():
    free, stratified = skills_after(forced=0), skills_after(forced=2)
    assert free[0] > 0.9 and free[1] < 0.5
    assert stratified.min() > 0.9
