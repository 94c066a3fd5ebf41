"""The probabilities behind expected rewards: what they are fitted on, and where they are used."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from flax import nnx
from scipy.optimize import minimize

from agenticrec_jax.agent.episodes import Agent
from agenticrec_jax.agent.prompts import CompactPrompts
from agenticrec_jax.agent.scripted import LABELS, orders_of
from agenticrec_jax.agent.tasks import RANK
from agenticrec_jax.cli.configs import load_config
from agenticrec_jax.runs import Run, reinforcement, run_config, stages
from agenticrec_jax.runs import rollouts as stored_rollouts
from agenticrec_jax.runs.config import EvaluationConfig, RunConfig
from agenticrec_jax.runs.data import RunData
from agenticrec_jax.runs.expected_targets import target_probabilities
from agenticrec_jax.runs.policy import Policy
from agenticrec_jax.runs.stage_config import GrpoConfig
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.models import tiny_qwen3
from agenticrec_jax.testing.world import empty_trajectory, tiny_world
from agenticrec_jax.tools.base import AsOfView
from agenticrec_jax.training.groups import GroupWeighting
from agenticrec_jax.training.mining import HardPair

POLICY = SimpleNamespace(params=None)


class OwnOrders:
    """Rankings with the target at place 1 or 2, in turn; invalid for every seventh example."""

    def __init__(self):
        self.calls = 0

    def __call__(self, agent, engine, params, tasks, *, members, temperature, **_):
        assert (agent.use_tools, members, temperature) == (False, 1, 0.0)
        self.calls += 1
        return [[self.trajectory(task)] for task in tasks]

    def trajectory(self, task):
        ranking = self.ranking(task.example)
        reason = None if ranking else "malformed"
        return empty_trajectory(task, ranking=ranking or None, invalid_reason=reason)

    @staticmethod
    def ranking(example):
        if example.example_id % 7 == 0:
            return ()
        others = [n for n in range(1, 21) if n != example.target_number]
        place = example.example_id % 2
        return tuple([*others[:place], example.target_number, *others[place:]][:10])


@pytest.fixture
def own_orders(monkeypatch):
    fake = OwnOrders()
    monkeypatch.setattr(stored_rollouts, "run_episodes", fake)
    return fake


@pytest.fixture
def run():
    world = tiny_world()
    prompts = CompactPrompts(world.tokenizer, world.log.items, title_tokens=0)
    return SimpleNamespace(
        config=RunConfig(),
        data=RunData(world.log, None, {"policy": world.examples}, candidate_hash="abc"),
        training_agent=Agent(world.log, world.toolbox, world.artifacts, prompts),
        artifacts_a=world.artifacts,
        engine=None,
        policy_directory="tiny",
    )


def expected_probabilities(run, own_order):
    """The same conditional logit from its definition, by SciPy."""
    examples, agent = run.data.examples["policy"], run.training_agent
    rows = []
    for example in examples:
        orders = orders_of(AsOfView(run.data.log, example), agent.toolbox)
        orders = [orders.get(label, ()) for label in LABELS] + [own_order(example)]
        rows.append(
            [
                [f(order.index(n) + 1) if n in order else 0.0 for order in orders for f in FEATURES]
                for n in range(1, 21)
            ]
        )
    features = np.array(rows)
    targets = np.array([example.target_number - 1 for example in examples])

    def scores(weights):
        logits = features @ weights
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    def loss(weights):
        nll = -scores(weights)[np.arange(len(targets)), targets].mean()
        return nll + 1e-3 * (weights**2).sum()

    return np.exp(scores(minimize(loss, np.zeros(features.shape[2])).x))


FEATURES = (lambda rank: 1 / np.log2(rank + 1), lambda rank: 1.0)


def test_targets_are_expected_by_a_logit_of_all_orders_and_the_policy_s_own(
    tmp_path, run, own_orders
):
    probabilities = target_probabilities(run, POLICY, tmp_path, [])
    examples = run.data.examples["policy"]
    table = np.array([[probabilities[e.example_id][i] for i in e.candidates] for e in examples])
    np.testing.assert_allclose(table, expected_probabilities(run, OwnOrders.ranking), atol=2e-3)
    without = expected_probabilities(run, lambda example: ())
    assert np.abs(table - without).max() > 0.1  # the policy's own order counts


def test_a_resumed_run_reads_the_rankings_and_other_runs_do_not(tmp_path, run, own_orders):
    first = target_probabilities(run, POLICY, tmp_path, [])
    again = target_probabilities(run, POLICY, tmp_path, [])
    assert own_orders.calls == 1
    assert first == again
    run.policy_directory = "other"
    target_probabilities(run, POLICY, tmp_path, [])
    run.data = dataclasses.replace(run.data, candidate_hash="abd")
    target_probabilities(run, POLICY, tmp_path, [])
    run.config = RunConfig(evaluation=EvaluationConfig(fitting_examples=4))
    target_probabilities(run, POLICY, tmp_path, [])
    assert own_orders.calls == 4


def test_only_fitted_and_needed_examples_are_ranked(tmp_path, run, own_orders):
    examples = run.data.examples["policy"]
    run.config = RunConfig(evaluation=EvaluationConfig(fitting_examples=4))
    needed = {example.example_id for example in examples[-5:]}
    probabilities = target_probabilities(run, POLICY, tmp_path, needed)
    spread = {examples[i * len(examples) // 4].example_id for i in range(4)}
    assert set(probabilities) == needed | spread
    (rankings,) = tmp_path.glob("rankings_without_tools_*.jsonl")
    assert len(rankings.read_text().splitlines()) == len(probabilities)


@pytest.mark.parametrize("stage", ["rta", "ppr"])
def test_a_stage_rewards_its_tasks_by_them_and_needs_no_others(tmp_path, monkeypatch, stage):
    """The agent of the loop has the expected reward, of all examples that a turn can ask about."""
    world = tiny_world()
    config = load_config("office:smoke")
    settings = {"expected_reward": True, "steps": 2, "prompts": 4, "oversample": 2}
    config[stage].update(settings)  # groups of equal rewards are dropped, and replaced
    policy = Policy(*nnx.split(tiny_qwen3(vocab_size=420)), world.tokenizer, "")
    data = RunData(world.log, None, {"policy": world.examples}, "")
    run = Run(run_config(config), tmp_path, data=data, policy=policy)
    run.artifacts_a = world.artifacts
    first = world.examples[0]
    pair = HardPair(first.example_id, first.target, first.candidates[0], 1.0, True)
    monkeypatch.setattr(reinforcement, "mined_pairs", lambda *_, **__: [pair])
    asked, loops = [], []

    def probabilities(run, policy, directory, needed):
        asked.append((directory, set(needed)))
        even = {e.example_id: dict.fromkeys(e.candidates, 1 / 20) for e in world.examples}
        return {example_id: even[example_id] for example_id in needed}

    def reinforce(stage, state, *, agent, tasks_at, **_):
        loops.append((agent, tasks_at))
        return state

    monkeypatch.setattr(reinforcement, "target_probabilities", probabilities)
    monkeypatch.setattr(reinforcement.loop, "reinforce", reinforce)
    stages.train(run, stage, policy.copy(), directory=tmp_path, seed=4)
    ((agent, tasks_at),) = loops
    tasks = [task for turn in range(6) for task in tasks_at(turn)]
    assert asked == [(tmp_path / stage, {task.example.example_id for task in tasks})]
    discounts = 1 / np.log2(np.arange(2, 12))
    expected = (discounts.sum() + 10 * -0.5) / 20  # Eq. 1 of each candidate, equally likely
    task = next(task for task in tasks if task.kind == RANK)
    answer = empty_trajectory(task, ranking=tuple(range(1, 11)))
    assert agent.reward(answer, task).total == pytest.approx(expected)
    questions = [task for task in tasks if task.kind != RANK]
    assert bool(questions) == (stage == "ppr")
    for task in questions:  # either answer is right in half of the cases
        assert agent.reward(empty_trajectory(task, choice="A"), task).total == 0.5


def test_expected_rewards_have_no_place_that_settles_a_list():
    groups = GroupWeighting(rank_credit=True)
    GrpoConfig(groups=groups)
    sentence = refused(GrpoConfig, expected_reward=True, groups=groups)
    assert_names(sentence, "groups.rank_credit", "expected")
