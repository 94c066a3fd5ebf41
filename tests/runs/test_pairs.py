"""Mined pairs and held-out pairs of a run: files, metrics, resumption and the shares of processes.

The rollouts are drawn by this file's `episodes` in place of a policy; the tools are real.
"""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from agenticrec_jax.agent.episodes import Agent
from agenticrec_jax.agent.prompts import CompactPrompts
from agenticrec_jax.agent.scripted import orders_of
from agenticrec_jax.agent.tasks import RANK, correct_choice
from agenticrec_jax.parallel import multihost
from agenticrec_jax.rewards import Reward
from agenticrec_jax.runs import heldout, pairs
from agenticrec_jax.runs import rollouts as stored_rollouts
from agenticrec_jax.runs.config import RunConfig
from agenticrec_jax.runs.data import RunData
from agenticrec_jax.runs.reinforcement import stage_tasks
from agenticrec_jax.runs.stage_config import PprConfig
from agenticrec_jax.runtime.metric_logging import read_metrics
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.world import empty_trajectory, tiny_world
from agenticrec_jax.tools.base import AsOfView
from agenticrec_jax.training.mining import (
    HardPair,
    PairRule,
    mine_pairs,
    preference_tasks,
    ranks_above,
    read_pairs,
)
from agenticrec_jax.training.self_augmentation import read_groups

EXAMPLES, SEED = 24, 3
SAMPLED = {"mining_examples": EXAMPLES, "mining_members": 4, "mining_chunk": 10}


def trajectory(task, member, **answer):
    return empty_trajectory(task, member, reward=Reward(0.0, 0.0, 0.0), **answer)


class Rollouts:
    """Rankings drawn by (seed, example, member), and answers about pairs that are ``right``.

    Attributes:
      right: whether a question of an example is answered rightly, by its id.
      calls: (tasks, members, temperature) of each call.
    """

    def __init__(self):
        self.right = lambda example_id: False
        self.calls = []

    def __call__(
        self, agent, engine, params, tasks, *, members, temperature, seed, on_trajectory, **forced
    ):
        assert agent.use_tools and not agent.stop_on_illegal
        assert forced == {"step": 0, "forced_calls": 0, "forced_tools": ()}
        self.calls.append((len(tasks), members, temperature))
        groups = [
            [self.trajectory(task, member, seed) for member in range(members)] for task in tasks
        ]
        for group in groups:
            for trajectory in group:
                on_trajectory(trajectory)
        return groups

    def trajectory(self, task, member, seed):
        right = correct_choice(task)
        if task.kind != RANK:
            wrong = {"A": "B", "B": "A"}[right]
            return trajectory(
                task, member, choice=right if self.right(task.example.example_id) else wrong
            )
        rng = np.random.default_rng((seed, task.example.example_id, member))
        ranking = tuple((1 + rng.permutation(len(task.example.candidates))[:10]).tolist())
        target = task.example.target_number
        rank = ranking.index(target) + 1 if target in ranking else None
        return trajectory(task, member, ranking=ranking, rank=rank)


@pytest.fixture
def rollouts(monkeypatch):
    fake = Rollouts()
    monkeypatch.setattr(stored_rollouts, "run_episodes", fake)
    return fake


def make_run(workdir, **ppr):
    world = tiny_world()
    prompts = CompactPrompts(world.tokenizer, world.log.items, title_tokens=0)
    data = RunData(world.log, None, {"policy": world.examples}, candidate_hash="abc")
    return SimpleNamespace(
        config=RunConfig(ppr=PprConfig(**(SAMPLED | ppr))),
        workdir=workdir,
        policy_directory="tiny",
        data=data,
        training_agent=Agent(world.log, world.toolbox, world.artifacts, prompts),
        engine=None,
    )


POLICY = SimpleNamespace(params=None, tokenizer=tiny_world().tokenizer)


def mine(workdir, **ppr):
    run = make_run(workdir, **ppr)
    settings = run.config.ppr
    return run, pairs.mined_pairs(
        run, POLICY, workdir / "ppr", settings=settings, seed=SEED, heldout=settings.heldout
    )


def metrics_of(workdir, stage):
    lines = read_metrics(workdir / "metrics.jsonl")
    return {line["step"]: line for line in lines if line["stage"] == stage}


def test_mining_says_how_far_it_is(tmp_path, rollouts, capsys):
    mine(tmp_path)
    printed = capsys.readouterr().out
    count = sum(tasks * members for tasks, members, _ in rollouts.calls)
    ends = re.findall(r"^mining: (\d+)/(\d+) episodes, .*  ndcg@10 [\d.]+ valid ", printed, re.M)
    assert sum(int(total) for _, total in ends) == count and all(a == b for a, b in ends)


def test_one_ranking_of_an_example_is_greedy_and_one_batch(tmp_path, rollouts):
    ppr = {"mining_members": 1, "mining_chunk": 0}
    run, mined = mine(tmp_path, **ppr)
    assert rollouts.calls == [(EXAMPLES, 1, 0.0)]
    (rankings,) = zip(*read_groups(tmp_path / "ppr" / "mining" / "00000.jsonl", 1), strict=True)
    plain = mine_pairs(rankings, run.data.by_id("policy"), SEED)
    assert [(p.example_id, p.negative) for p in mined] == sorted(
        (p.example_id, p.negative) for p in plain
    )
    assert len(mined) > 10 and {pair.violation for pair in mined} == {1}
    assert not (tmp_path / "ppr" / "heldout.jsonl").exists()


def test_several_rankings_are_sampled_in_chunks_and_stored(tmp_path, rollouts):
    run, mined = mine(tmp_path, mining_temperature=0.7)
    assert rollouts.calls == [(10, 4, 0.7), (10, 4, 0.7), (4, 4, 0.7)]
    files = sorted((tmp_path / "ppr" / "mining").glob("*.jsonl"))
    stored = [t for file in files for group in read_groups(file, 4) for t in group]
    assert len(files) == 3 and len(stored) == 4 * EXAMPLES
    for pair in mined:
        number = run.data.by_id("policy")[pair.example_id].candidates.index(pair.negative) + 1
        rankings = [t for t in stored if t.example_id == pair.example_id]
        higher = [t.ranking[: t.rank - 1 if t.rank else None] for t in rankings]
        assert pair.violation == np.mean([number in ranking for ranking in higher]) > 0


def test_a_pair_is_decidable_by_the_tools_whether_they_were_called_or_not(tmp_path, rollouts):
    run, mined = mine(tmp_path)
    by_id = run.data.by_id("policy")
    for pair in mined:
        example = by_id[pair.example_id]
        orders = orders_of(AsOfView(run.data.log, example), run.training_agent.toolbox).values()
        number = example.candidates.index(pair.negative) + 1
        above = [ranks_above(order, example.target_number, number) for order in orders]
        assert pair.decidable is any(above)
    assert {pair.decidable for pair in mined} == {True, False}


def test_the_metrics_are_the_shares_of_the_pairs(tmp_path, rollouts):
    _, mined = mine(tmp_path, mining_rule="decidable", heldout=0.25)
    line = metrics_of(tmp_path, "ppr_mining")[1]
    assert line["pairs"] == len(mined) and line["pairs/decidable"] == 1
    assert 0 < line["pool/decidable"] < 1 and line["violated"] == 1
    assert line["heldout"] == round(0.25 * EXAMPLES)
    for name in ("pool", "pairs"):
        bins = [line[f"{name}/violation_to_{bound}"] for bound in (25, 50, 75, 100)]
        assert sum(bins) == pytest.approx(1)
    assert line["pairs/violation"] == pytest.approx(np.mean([p.violation for p in mined]))
    assert line["pairs/violation_to_25"] == np.mean([p.violation <= 0.25 for p in mined])


@pytest.mark.parametrize(
    ("ppr", "rule"),
    [
        ({"mining_rule": "uncertain"}, PairRule(0.2, 0.8)),
        ({"mining_rule": "uncertain", "mining_band": (0.5, 0.5)}, PairRule(0.5, 0.5)),
        ({"mining_rule": "decidable"}, PairRule(decidable=True)),
        (
            {"mining_rule": "both", "mining_band": (0.5, 1.0)},
            PairRule(0.5, 1.0, decidable=True),
        ),
    ],
)
def test_the_rule_is_the_settings(tmp_path, rollouts, ppr, rule):
    _, everything = mine(tmp_path / "uniform", mining_members=8)
    _, mined = mine(tmp_path / "rule", mining_members=8, **ppr)
    assert 0 < len(mined) and all(rule.takes(pair) for pair in mined)
    assert not all(rule.takes(pair) for pair in everything)


def test_a_resumed_run_ranks_only_what_is_missing(tmp_path, rollouts):
    _, whole = mine(tmp_path, heldout=0.25)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    files = [*sorted((tmp_path / "ppr" / "mining").glob("*.jsonl")), *_pair_files(tmp_path)]
    contents = [file.read_bytes() for file in files]
    for file in files[1:]:
        file.unlink()
    rollouts.calls.clear()
    _, resumed = mine(tmp_path, heldout=0.25)
    assert rollouts.calls == [(10, 4, 1.0), (4, 4, 1.0)] and resumed == whole
    assert [file.read_bytes() for file in files] == contents
    assert read_metrics(tmp_path / "metrics.jsonl") == lines
    rollouts.calls.clear()
    _, again = mine(tmp_path, heldout=0.25)
    assert not rollouts.calls and again == whole


def _pair_files(workdir):
    return [workdir / "ppr" / name for name in ("heldout.jsonl", "pairs.jsonl")]


def test_rankings_of_other_settings_are_refused(tmp_path, rollouts):
    mine(tmp_path)
    sentence = refused(mine, tmp_path, mining_rule="decidable")
    assert_names(sentence, tmp_path / "ppr" / "mining", "mining_rule", "uniform", "decidable")


def test_processes_share_the_rankings(tmp_path, rollouts, monkeypatch):
    """Each of two ranks every second example, and what they gather is what one has alone."""
    _, alone = mine(tmp_path / "alone")
    expected = [file.read_bytes() for file in _files(tmp_path / "alone")]
    rollouts.calls.clear()
    others = []

    def local_items(items):
        others[:] = items[1::2]
        return items[0::2]

    def allgather(value):
        if not isinstance(value, list):
            return [value, value]
        groups = [
            [rollouts.trajectory(task, member, SEED) for member in range(4)] for task in others
        ]
        return [value, [[t.to_json() for t in group] for group in groups]]

    monkeypatch.setattr(multihost, "local_items", local_items)
    monkeypatch.setattr(multihost, "allgather", allgather)
    _, shared = mine(tmp_path / "shared")
    assert [tasks for tasks, _, _ in rollouts.calls] == [5, 5, 2] and shared == alone
    assert [file.read_bytes() for file in _files(tmp_path / "shared")] == expected


def _files(workdir):
    return [*sorted((workdir / "ppr" / "mining").glob("*.jsonl")), workdir / "ppr" / "pairs.jsonl"]


def test_held_out_pairs_are_the_same_whatever_the_rule_and_are_not_trained_on(tmp_path, rollouts):
    files = {}
    for rule in ("uniform", "decidable"):
        run, mined = mine(tmp_path / rule, heldout=0.25, mining_rule=rule)
        files[rule] = (tmp_path / rule / "ppr" / "heldout.jsonl").read_bytes()
        aside = read_pairs(_pair_files(tmp_path / rule)[0], run.data.by_id("policy"))
        assert len(aside) == 6
        assert not {p.example_id for p in aside} & {p.example_id for p in mined}
    assert files["uniform"] == files["decidable"]


def ask(workdir, moment, rollouts, right):
    rollouts.right = right
    run = make_run(workdir, heldout=0.5)
    return heldout.ask_heldout(run, POLICY, workdir / "ppr", moment, seed=SEED)


def test_accuracy_on_held_out_pairs_before_and_after(tmp_path, rollouts):
    """Decidable pairs are answered rightly after the stage, the others never."""
    run, _ = mine(tmp_path / "seed_3", heldout=0.5)
    directory = tmp_path / "seed_3"
    run.workdir = tmp_path
    aside = read_pairs(_pair_files(directory)[0], run.data.by_id("policy"))
    decidable = {pair.example_id for pair in aside if pair.decidable}
    assert 0 < len(decidable) < len(aside) == 12
    rollouts.calls.clear()
    ids = ask(directory, heldout.BEFORE, rollouts, lambda example_id: False)
    assert ids == {pair.example_id for pair in aside} and rollouts.calls == [(24, 1, 0.0)]
    ask(directory, heldout.AFTER, rollouts, lambda example_id: example_id in decidable)
    ask(directory, heldout.AFTER, rollouts, lambda example_id: False)  # reads what is stored
    lines = metrics_of(directory, "ppr_heldout")
    assert list(lines) == [0, run.config.ppr.steps]
    before, after = lines.values()
    share = len(decidable) / len(aside)
    assert before["accuracy"] == 0 and after["accuracy"] == share
    assert after["accuracy_decidable"] == 1 and after["accuracy_undecidable"] == 0
    assert after["accuracy_low"] < share < after["accuracy_high"] and after["invalid"] == 0
    rows = {row["pairs"]: row for row in heldout.preference_rows(run, [SEED])}
    assert rows["all"]["questions"] == 24 and rows["all"]["difference"] == share
    assert rows["decidable"]["after_interval"] == [1, 1]
    assert rows["undecidable"]["interval"] == [0, 0]
    assert_names(rows["decidable"]["sentence"], "0.000", "1.000", "+1.000", "above")
    assert_names(rows["undecidable"]["sentence"], "undecidable", "not told apart")


def test_an_invalid_answer_is_wrong():
    example = tiny_world().examples[0]
    negative = next(item for item in example.candidates if item != example.target)
    pair = HardPair(example.example_id, example.target, negative)
    tasks = preference_tasks([pair], {example.example_id: example}, SEED)
    answers = [
        trajectory(tasks[0], 0, choice=correct_choice(tasks[0])),
        trajectory(tasks[1], 0, invalid_reason="no_answer"),
    ]
    assert heldout.right_answers(answers, tasks).tolist() == [1, 0]


def test_no_task_of_the_stage_is_about_a_held_out_example(tmp_path, rollouts):
    """The ranking tasks against forgetting would reward the answers to its questions."""
    seen = {}
    for share in (0.0, 0.5):
        workdir = tmp_path / str(share)
        run = make_run(workdir, heldout=share, prompts=8)
        tasks_at = stage_tasks(run, "ppr", POLICY, workdir, SEED)
        seen[share] = {
            (task.kind == RANK, task.example.example_id)
            for step in range(200)
            for task in tasks_at(step)
        }
    everything = {example.example_id for example in run.data.examples["policy"]}
    run_pairs = read_pairs(tmp_path / "0.5" / "ppr" / "pairs.jsonl", run.data.by_id("policy"))
    aside = read_pairs(_pair_files(tmp_path / "0.5")[0], run.data.by_id("policy"))
    aside = {pair.example_id for pair in aside}
    assert {i for ranks, i in seen[0.0] if ranks} == everything
    assert {i for ranks, i in seen[0.5] if ranks} == everything - aside
    assert {i for ranks, i in seen[0.5] if not ranks} == {p.example_id for p in run_pairs}
