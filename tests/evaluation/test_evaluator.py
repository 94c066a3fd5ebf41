from functools import partial

import numpy as np
import pytest

from agenticrec_jax.agent import progress, scripted
from agenticrec_jax.agent.episodes import Agent
from agenticrec_jax.agent.prompts import CompactPrompts
from agenticrec_jax.evaluation.baselines import scripted as rows
from agenticrec_jax.evaluation.evaluator import copy_accuracy, evaluate
from agenticrec_jax.generation.engine import Rollout
from agenticrec_jax.runs.evaluations import evaluation_row, policy_rankings
from agenticrec_jax.runtime.progress import Progress
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.tools.base import AsOfView
from agenticrec_jax.types import SAMPLED


class Writer:
    """Replaces the engine: the completion of prompt i is answer i."""

    def __init__(self, tokenizer, answers):
        self.tokenizer = tokenizer
        self.answers = answers

    def generate(self, params, requests, respond, *, temperature, seed, **options):
        rows = [self._row(answer) for answer in self.answers]
        if on_rollout := options.get("on_rollout"):
            for i, row in enumerate(rows):
                on_rollout(i, 0, row)
        return [[row] for row in rows]

    def _row(self, text):
        ids = np.array(self.tokenizer.encode_markup(text), np.int32)
        return Rollout(
            ids, np.zeros(len(ids), np.float32), np.full(len(ids), SAMPLED, np.uint8), "stop"
        )


@pytest.fixture(scope="module")
def agent():
    world = tiny_world()
    prompts = CompactPrompts(world.tokenizer, world.log.items, 4)
    return Agent(world.log, world.toolbox, world.artifacts, prompts)


def test_invalid_answers_stay_in_the_row(agent):
    examples = tiny_world().examples[:3]
    target = examples[0].target_number
    ten = [target, *(n for n in range(1, 21) if n != target)][:10]
    answers = [f"<answer>\\boxed{{[{','.join(map(str, ten))}]}}</answer>", "no", "<answer>"]
    trajectories = evaluate(agent, Writer(agent.prompts.tokenizer, answers), None, examples)
    log = tiny_world().log
    rankings = policy_rankings("policy", trajectories, examples=examples, log=log, seed=None)
    row = evaluation_row("policy", rankings, trajectories, examples, log)
    assert row["n"] == 3 and row["hr@1"] == pytest.approx(1 / 3)
    assert row["invalid_rate"] == pytest.approx(2 / 3) and row["ndcg@10"] == pytest.approx(1 / 3)


def test_an_evaluation_says_how_far_it_is_and_how_good_so_far(agent, capsys, monkeypatch):
    """Three numbers of the episodes that have ended: after two of three, 1/2 and not 1/3."""
    monkeypatch.setattr(progress, "Progress", partial(Progress, every_s=0.0))
    examples = tiny_world().examples[:3]
    target = examples[0].target_number
    ten = [target, *(n for n in range(1, 21) if n != target)][:10]
    answers = [f"<answer>\\boxed{{[{','.join(map(str, ten))}]}}</answer>", "no", "<answer>"]
    evaluate(agent, Writer(agent.prompts.tokenizer, answers), None, examples, name="judging")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"judging: {i}/3 episodes" for i in range(4)]
    assert [line.split("  ")[1] for line in lines[1:]] == [
        "ndcg@10 1.000 valid 1.000 calls 0.00",
        "ndcg@10 0.500 valid 0.500 calls 0.00",
        "ndcg@10 0.333 valid 0.333 calls 0.00",
    ]


def test_copies_are_compared_rank_by_rank(agent):
    examples = tiny_world().examples[:4]
    plans = [scripted.Plan(("candidates_analyze",), ("popular",))]
    evidence = [scripted.orders_of(AsOfView(agent.log, e), agent.toolbox) for e in examples]
    lists = [list(scripted.follow(orders, ("popular",), 20)) for orders in evidence]
    lists[1][0], lists[1][1] = lists[1][1], lists[1][0]
    lists[2] = lists[2][:9]
    lists[3] = list(dict.fromkeys([lists[3][1], lists[3][0], *lists[3]]))
    answers = [f"<answer>\\boxed{{[{''.join(f'{n},' for n in x)}]}}</answer>" for x in lists]
    report = copy_accuracy(agent, Writer(agent.prompts.tokenizer, answers), None, examples, plans)
    assert report.n == 4 and report.invalid == 0.25
    assert report.followed == pytest.approx((10 + 8 + 0 + 8) / 40)
    assert report.first == 0.25 and report.overlap == pytest.approx(3 / 4)


def test_what_an_answer_has_of_the_expected_candidates_is_counted_in_any_order(agent):
    example = tiny_world().examples[0]
    orders = scripted.orders_of(AsOfView(agent.log, example), agent.toolbox)
    expected = scripted.follow(orders, ("popular",), 20)
    others = [n for n in range(1, 21) if n not in expected]
    answer = [expected[0], *others[:3], *expected[6:0:-1]]
    text = f"<answer>\\boxed{{[{','.join(map(str, answer))}]}}</answer>"
    plans = [scripted.Plan(("candidates_analyze",), ("popular",))]
    writer = Writer(agent.prompts.tokenizer, [text])
    report = copy_accuracy(agent, writer, None, [example], plans)
    assert (report.first, report.overlap, report.invalid) == (1.0, 0.7, 0.0)


def test_the_best_plan_and_a_linear_fit_use_the_order_that_has_the_target():
    rng = np.random.default_rng(0)
    evidence = []
    examples = []
    for example in tiny_world().examples * 20:
        others = [n for n in rng.permutation(20) + 1 if n != example.target_number]
        good = [*others[:1], example.target_number, *others[1:9]]
        noise = {label: tuple(rng.permutation(20)[:10] + 1) for label in ("popular", "similar")}
        evidence.append({"taken": tuple(good), **noise})
        examples.append(example)
    best = rows.best_plan(scripted.fixed_plans(), evidence, examples)
    assert best.priority[0] == "taken"
    ranks = rows.plan_ranks(best, evidence, examples)
    assert (ranks == 2).all()
    features = rows.evidence_features(evidence)
    weights = rows.fit_linear(features, np.array([e.target_number - 1 for e in examples]))
    first_two = np.argsort(-rows.linear_scores(features, weights), axis=1)[:, :2] + 1
    hits = [e.target_number in row for e, row in zip(examples, first_two, strict=True)]
    assert np.mean(hits) > 0.95
