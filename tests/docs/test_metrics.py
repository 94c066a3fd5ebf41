"""The metrics reference has every name that a run writes, and no name that nothing writes."""

import dataclasses
import itertools
import json
import pathlib
import re

import jax
import numpy as np
import pytest

from agenticrec_jax import types
from agenticrec_jax.agent import protocol
from agenticrec_jax.agent.tasks import Task
from agenticrec_jax.agent.trajectories import CallRecord
from agenticrec_jax.losses import (
    dpo_preference_loss,
    for_batch,
    grpo_loss,
    logistic_preference_loss,
    sft_loss,
)
from agenticrec_jax.rewards import Reward
from agenticrec_jax.runs.heldout import accuracy_metrics
from agenticrec_jax.runtime.checkpoints import Checkpoints
from agenticrec_jax.runtime.metric_logging import read_metrics
from agenticrec_jax.testing.stages import refilling, tiny_stage
from agenticrec_jax.testing.world import empty_trajectory, tiny_world
from agenticrec_jax.training.groups import GroupWeighting
from agenticrec_jax.training.logprobs import make_scorer
from agenticrec_jax.training.mining import HardPair, pair_metrics
from agenticrec_jax.training.packing import abstract_batch
from agenticrec_jax.training.self_augmentation import RULES
from agenticrec_jax.training.skill_sources import Episodes, Fusing, Reading
from agenticrec_jax.training.step_metrics import rollout_metrics
from agenticrec_jax.training.validation import Validation
from tests.docs.pages import DOCS, ROOT

PAGE = (DOCS / "reference" / "metrics.md").read_text(encoding="utf-8")
OF_STEPS, OF_RESULTS = PAGE.split("## results.json")
RESULTS = ROOT / "experiments" / "results"
OLDER = {"invalid/budget"}  # which the page names below the table
WRITTEN_ELSEWHERE = {"kept", *(f"dropped/{rule}" for rule in RULES)}  # `self_sft_filter`
WRITTEN_ELSEWHERE |= {"violated", "pairs", "heldout"}  # `ppr_mining`
PAIRS = [HardPair(1, 5, 6, 1.0, True), HardPair(2, 5, 6, 0.5, False)]
WRITTEN_ELSEWHERE |= {*pair_metrics(PAIRS, "pool"), *pair_metrics(PAIRS, "pairs")}
WRITTEN_ELSEWHERE |= {"beam_reward", "beam_recall"}  # `rere`
WRITTEN_ELSEWHERE |= {"invalid", *accuracy_metrics(np.ones(4), PAIRS, [0, 1])}  # `ppr_heldout`


def documented(page: str) -> set[str]:
    """Names in the first column of the tables of a page."""
    first = re.findall(r"^\| (`[^|]+) \|", page, re.M)
    return {name for cell in first for name in re.findall(r"`([^`]+)`", cell)}


NAMES = documented(OF_STEPS)
PATTERNS = {name: re.compile(re.sub("<[^>]+>", r"\\w+", name)) for name in NAMES if "<" in name}


def entry(name: str) -> str | None:
    """The entry of the page that a metric's name belongs to."""
    if name in NAMES:
        return name
    return next((n for n, pattern in PATTERNS.items() if pattern.fullmatch(name)), None)


@pytest.fixture(scope="module")
def names_of_a_run(tmp_path_factory) -> set[str]:
    """Names that a small stage writes: refilled groups, a reference, validation, and credit."""
    directory = tmp_path_factory.mktemp("run")
    stage = tiny_stage()
    score = make_scorer(stage.graphdef, temperature=stage.stage.temperature)
    with Checkpoints(directory / "best", {}, max_to_keep=None) as best:
        validation = Validation(1, lambda params: 0.5, best)
        lines = refilling(stage, score).run(directory, validation=validation).lines
    credit = GroupWeighting(plan_bonus=0.1, imitation=0.1, keep_variance=0.9)
    options = {"weighting": credit, "entropy_target": 0.5}
    lines += stage.run(directory / "credit", steps=1, **options).lines
    return {name for line in lines for name in line}


def names_of_losses() -> set[str]:
    """Names of the metrics of every loss, with all options on."""
    batch = abstract_batch(2, 2, 3, 5, reference=True)
    tokens = batch.behavior_logprobs
    batch = dataclasses.replace(batch, entropy=tokens)
    losses = [
        for_batch(grpo_loss, normalizer=1.0, correction_cap=2.0, kl_coef=0.1, entropy_coef=0.1),
        for_batch(grpo_loss, normalizer=1.0, clip_low=0.2, clip_high=0.2, dual_clip=3.0),
        for_batch(sft_loss),
        for_batch(logistic_preference_loss),
        for_batch(dpo_preference_loss, beta=0.1),
    ]
    return {name for loss in losses for name in jax.eval_shape(loss, tokens, batch)[1]}


def names_of_pretraining() -> set[str]:
    """Names of each skill's metrics: its readouts, and those that all skills have."""
    drill, answer = Fusing(prompts=None), Fusing(prompts=None, list_given=True)
    sources = {"fusing": drill, "weighing": drill, "pairing": drill, "answering": answer}
    sources |= {"reading": Reading, "drafting": Reading, "episodes": Episodes}
    sources |= dict.fromkeys(("choosing", "preferring", "concluding"), Episodes)
    common = ("nll", "first", "places")
    return {
        f"{skill}/{name}"
        for skill, source in sources.items()
        for name in (*common, *(readout.name for readout in source.readouts))
    }


def names_of_endings() -> set[str]:
    """Names that trajectories of every reason, and calls of every outcome, give."""
    source = pathlib.Path(protocol.__file__).read_text(encoding="utf-8")
    reasons = {*types.ENDS, *re.findall(r'ProtocolError\("(\w+)"\)', source)} - {types.STOP}
    calls = [CallRecord("get_user_profile", {}, "", True, 0.0)]
    calls += [CallRecord("get_user_profile", {}, "", False, 0.0)]
    calls += [
        CallRecord("a", {}, "", False, 0.0, failure)
        for failure in (types.TIMEOUT, types.RAISED, types.JUNK)
    ]
    task = Task(tiny_world().examples[0])
    scored = {"calls": calls, "reward": Reward(0.0, -1.0, 0.0)}
    return set(
        rollout_metrics(
            [
                [empty_trajectory(task, finish=reason, invalid_reason=reason, **scored)]
                for reason in sorted(reasons)
            ]
        )
    )


def test_every_metric_of_a_run_is_documented(names_of_a_run):
    names = names_of_a_run | names_of_losses() | names_of_endings() | WRITTEN_ELSEWHERE
    names |= names_of_pretraining()
    assert not [name for name in sorted(names) if entry(name) is None]


def test_every_documented_metric_is_written(names_of_a_run):
    names = names_of_a_run | names_of_losses() | names_of_endings() | WRITTEN_ELSEWHERE
    names |= names_of_pretraining()
    assert not NAMES - {entry(name) for name in names}


def test_every_reason_and_failure_is_named():
    for name in names_of_endings():
        kind, _, reason = name.partition("/")
        if kind == "invalid" or reason.startswith("failed/"):
            assert f"`{reason.removeprefix('failed/')}`" in OF_STEPS, name


def test_metrics_of_the_committed_runs_are_documented():
    files = sorted(RESULTS.rglob("metrics.jsonl"))
    names = {name for file in files for line in read_metrics(file) for name in line}
    assert files and not [name for name in sorted(names - OLDER) if entry(name) is None]


def test_fields_of_the_committed_results_are_documented():
    named = set(re.findall(r"`([^`]+)`", OF_RESULTS))
    for file in sorted(RESULTS.rglob("results.json")):
        results = json.loads(file.read_text(encoding="utf-8"))
        objects = [results, results["protocol"], results["gate"], *results["gate"].values()]
        objects += [*results["rows"], *results["comparisons"], *results["phases"]]
        objects += results.get("preferences", [])
        fields = itertools.chain.from_iterable(each for each in objects if isinstance(each, dict))
        assert not set(fields) - named, file
