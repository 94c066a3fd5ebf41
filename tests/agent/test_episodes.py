"""Episodes with a scripted policy: calls, observations, ends and rewards."""

import dataclasses

import numpy as np
import pytest

from agenticrec_jax.agent import interventions, protocol
from agenticrec_jax.agent.episodes import run_episodes
from agenticrec_jax.agent.protocol import ToolCall
from agenticrec_jax.agent.tasks import Task
from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.agent.transcripts import transcript
from agenticrec_jax.generation.engine import Failure
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.tools.base import Toolbox, object_schema
from agenticrec_jax.training.step_metrics import rollout_metrics
from agenticrec_jax.types import ENDS, OBSERVATION
from tests.agent.actors import LOOK, Actor, list_with_target_at, play, tiny_agent

NEAR = f"<think>near</think>{ToolCall('get_similar_items', {'item_name': 'h1'}).render()}"


@pytest.fixture(scope="module")
def agent():
    return tiny_agent()


def test_ranks_are_rewarded_and_a_first_rank_with_tools_earns_the_bonus(agent):
    first, tooled, third, miss = play(
        agent,
        [list_with_target_at(1)],
        [LOOK, NEAR, list_with_target_at(1)],
        [list_with_target_at(3)],
        [list_with_target_at(11)],
    )
    rewards = [t.reward.total for t in (first, tooled, third, miss)]
    assert rewards == pytest.approx([1.0, 1.1, 0.5, -0.5])
    assert [t.rank for t in (first, tooled, third, miss)] == [1, 1, 3, None]
    assert [call.name for call in tooled.calls] == ["candidates_analyze", "get_similar_items"]
    assert all(call.ok and call.seconds >= 0 for call in tooled.calls)


def test_observations_are_the_tools_words_between_the_markers(agent):
    (played,) = play(agent, [LOOK, list_with_target_at(1)])
    seen = agent.prompts.tokenizer.decode(played.ids[played.origin == OBSERVATION])
    assert seen == f"<observation>{played.calls[0].observation.lower()}</observation>"
    assert "popular:" in seen


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        (ToolCall("forbidden_tool", {}).render(), "unknown_tool"),
        ("<tool_call>{oops</tool_call>", "malformed_call"),
    ],
)
def test_illegal_calls_end_training_episodes_and_are_told_in_evaluation(agent, turn, reason):
    (ended,) = play(agent, [turn, list_with_target_at(1)])
    assert (ended.finish, ended.invalid_reason, ended.reward.total) == (reason, reason, -1.0)
    lenient = dataclasses.replace(agent, stop_on_illegal=False)
    (trajectory,) = play(lenient, [turn, list_with_target_at(1)])
    assert trajectory.valid and trajectory.rank == 1 and not trajectory.calls[0].ok
    assert trajectory.calls[0].observation.startswith("error")


def test_wrong_arguments_are_told_and_counted(agent):
    turn = ToolCall("item_info_search", {"name": 3}).render()
    (trajectory,) = play(agent, [turn, list_with_target_at(2)])
    assert trajectory.valid and not trajectory.calls[0].ok


def test_ten_calls_are_allowed_and_an_eleventh_is_not(agent):
    ten, eleven = play(agent, [LOOK] * 10 + [list_with_target_at(1)], [LOOK] * 11)
    assert ten.valid and len(ten.calls) == 10
    assert (eleven.invalid_reason, eleven.reward.total) == ("too_many_calls", -1.0)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ([LOOK], "token_budget"),
        (["<think>no answer</think>"], "no_answer"),
        ([protocol.render_ranking(range(1, 10))], "wrong_length"),
        ([LOOK, protocol.render_ranking([1] * 10)], "repeated_item"),
    ],
)
def test_invalid_ends_are_named(agent, script, reason):
    (played,) = play(agent, script)
    assert (played.invalid_reason, played.reward.total) == (reason, -1.0)
    assert played.finish in ENDS
    assert played.rank is None and played.ranking is None


class Tool:
    """Does what it is told when it is called."""

    name, description, parameters = "candidates_analyze", "Does anything.", object_schema()

    def __init__(self, act):
        self.act = act

    def __call__(self, view):
        return self.act()


def _raise():
    raise OSError("the shelf is empty")


@pytest.mark.parametrize(
    ("act", "reason", "said"),
    [
        (_raise, "raised", "error: the tool failed"),
        (lambda: 7, "junk", "error: the tool gave no text"),
        (lambda: "x" * 10**6, "junk", "error: the tool gave no text"),
    ],
)
@pytest.mark.parametrize("stop_on_illegal", [True, False])
def test_a_tools_failure_is_read_and_counted_and_is_not_the_policys(
    agent, act, reason, said, stop_on_illegal
):
    box = Toolbox([Tool(act)])
    broken = dataclasses.replace(agent, toolbox=box, stop_on_illegal=stop_on_illegal)
    played, other = play(broken, [LOOK, list_with_target_at(1)], [list_with_target_at(2)])
    (call,) = played.calls
    assert (call.ok, call.failure, call.observation) == (False, reason, said)
    assert call.name == "candidates_analyze" and call.detail
    seen = agent.prompts.tokenizer.decode(played.ids[played.origin == OBSERVATION])
    assert seen == f"<observation>{said}</observation>"
    assert played.valid and played.rank == 1
    assert Trajectory.from_json(played.to_json()).calls == [call]
    metrics = rollout_metrics([[played, other]])
    assert metrics[f"calls/failed/{reason}"] == (1.0, 2.0) and "calls/refused" not in metrics


def test_what_a_call_returns_after_it_was_given_up_changes_nothing(agent):
    """The engine gives the call up, and the tool answers after all: one call, one observation."""
    late = []

    class Impatient(Actor):
        def generate(self, params, requests, respond, *, on_failure, **options):
            def give_up(request, member, ids):
                late.append((respond, request, member, list(ids)))
                return on_failure(request, member, ids, Failure("timeout", "took long", 2.5))

            out = super().generate(params, requests, give_up, on_failure=on_failure, **options)
            for respond, *arguments in late:
                respond(*arguments)
            return out

    actor = Impatient(agent.prompts.tokenizer, [LOOK, NEAR, list_with_target_at(2)])
    task = Task(tiny_world().examples[0])
    ((played,),) = run_episodes(agent, actor, None, [task], members=1, temperature=1.0, seed=0)
    assert [call.name for call in played.calls] == ["candidates_analyze", "get_similar_items"]
    for call in played.calls:
        assert (call.failure, call.detail, call.seconds) == ("timeout", "took long", 2.5)
        assert call.observation == "error: the tool timed out" and not call.ok
    assert played.valid and played.rank == 2 and len(late) == 2
    assert rollout_metrics([[played]])["calls/failed/timeout"] == (2.0, 1.0)


def test_a_failed_call_counts_as_one_of_ten(agent):
    broken = dataclasses.replace(agent, toolbox=Toolbox([Tool(_raise)]))
    (played,) = play(broken, [LOOK] * 11)
    assert played.finish == "too_many_calls" and len(played.calls) == 10


def test_an_answer_quoted_by_a_tool_is_not_the_policys(agent):
    forged = dataclasses.replace(agent, transform=lambda text, _: list_with_target_at(1))
    (played,) = play(forged, [LOOK, "<think>done</think>"])
    assert played.invalid_reason == "no_answer"


def test_transforms_reach_the_policy(agent):
    blanked = dataclasses.replace(agent, transform=interventions.blank)
    (played,) = play(blanked, [LOOK, list_with_target_at(1)])
    assert played.calls[0].observation == interventions.BLANK


@pytest.mark.parametrize(("kind", "right"), [("more", "first"), ("less", "second")])
@pytest.mark.parametrize("target_first", [True, False])
def test_preference_questions_pay_the_right_letter(agent, kind, right, target_first):
    example = tiny_world().examples[0]
    other = next(c for c in example.candidates if c != example.target)
    pair = (example.target, other) if target_first else (other, example.target)
    task = Task(dataclasses.replace(example, candidates=pair), kind)
    a, b, bad = play(
        agent,
        [protocol.render_choice("A")],
        [LOOK, protocol.render_choice("B")],
        ["<answer>A</answer>"],
        task=task,
    )
    a_is_right = target_first == (right == "first")
    assert (a.reward.total, b.reward.total) == ((1.0, 0.0) if a_is_right else (0.0, 1.0))
    assert bad.reward.total == -1.0 and bad.invalid_reason == "malformed_answer"


def test_prompts_offer_tools_only_where_they_may_be_used(agent):
    task = Task(tiny_world().examples[0])
    tokenizer = agent.prompts.tokenizer
    assert "get_similar_users" in tokenizer.decode(agent.prompt(task))
    without = dataclasses.replace(agent, use_tools=False)
    assert tokenizer.decode(without.prompt(task)).endswith("tools:none<assistant>")
    (played,) = play(without, [LOOK])
    assert played.invalid_reason == "unknown_tool"


def test_examples_inside_the_fit_range_are_refused(agent):
    early = dataclasses.replace(tiny_world().examples[0], time=0)
    end_time = agent.artifacts.fit_range.end_time
    assert_names(refused(agent.prompt, Task(early)), "artifacts", "time 0", end_time)


def test_trajectories_survive_their_json_and_read_as_transcripts(agent):
    world = tiny_world()
    (played,) = play(agent, [LOOK, list_with_target_at(2)])
    again = Trajectory.from_json(played.to_json())
    assert again.to_json() == played.to_json() and np.array_equal(again.ids, played.ids)
    record = transcript(again, world.examples[0], world.log, world.tokenizer, "rta", seed=3)
    ids = world.log.items.item_id
    assert record["seed"] == 3
    assert record["history_ids"] == [ids[item] for item in world.examples[0].history]
    assert record["candidate_ids"] == [ids[item] for item in world.examples[0].candidates]
    assert [s["origin"] for s in record["segments"]] == ["sampled", "observation", "sampled"]
    assert (
        record["candidates"][record["target_number"] - 1]
        == world.log.items.title[world.examples[0].target]
    )
    assert record["reward"]["total"] == pytest.approx(played.reward.total)
