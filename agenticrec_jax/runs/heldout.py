"""Preference accuracy on held-out pairs, before and after stage ``ppr``.

AgenticRec (arXiv:2603.21613) reports the accuracy of its policy on preference questions before and
after its second stage. Here the questions are about the pairs of examples that the stage does not
train on (``config.ppr.heldout``).
"""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from agenticrec_jax.agent.tasks import Task, correct_choice
from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.metrics.significance import (
    Difference,
    bootstrap_interval,
    paired_difference,
)
from agenticrec_jax.parallel import multihost
from agenticrec_jax.paths import Path
from agenticrec_jax.runs.pairs import HELDOUT, lenient_agent
from agenticrec_jax.runs.policy import Policy
from agenticrec_jax.runs.rollouts import stored_episodes
from agenticrec_jax.runs.run import Run
from agenticrec_jax.runtime.metric_logging import Metric, MetricsWriter
from agenticrec_jax.training.mining import HardPair, preference_tasks, read_pairs
from agenticrec_jax.training.self_augmentation import read_groups

BEFORE = "before"
AFTER = "after"


def ask_heldout(
    run: Run, policy: Policy, directory: Path, moment: str, *, seed: int
) -> frozenset[int]:
    """Asks the MORE and the LESS question of each held-out pair, greedily and with tools.

    The answers are stored in ``heldout_<moment>.jsonl``, and a file that is there is read instead.
    A line of ``metrics.jsonl``, stage ``ppr_heldout``, has their accuracy: step 0 before the
    stage, its last step after it. Nothing is asked where `pairs.mined_pairs` held no pair out.

    Args:
      run: log, tools and engine.
      policy: that is asked.
      directory: of the stage's files.
      moment: `BEFORE` or `AFTER`.
      seed: of the order of A and B, as in training.

    Returns:
      the ids of the held-out examples.
    """
    pairs = _held_out_pairs(run, directory)
    if not pairs:
        return frozenset()
    tasks = preference_tasks(pairs, run.data.by_id("policy"), seed)
    groups = stored_episodes(
        directory / f"heldout_{moment}.jsonl",
        lenient_agent(run),
        run.engine,
        policy,
        tasks,
        members=1,
        temperature=0.0,
        seed=seed,
        name=f"held-out pairs {moment}",
    )
    answers = [group[0] for group in groups]
    metrics = accuracy_metrics(right_answers(answers, tasks), pairs, _users(run, pairs))
    metrics["invalid"] = (float(sum(not t.valid for t in answers)), float(len(answers)))
    stage = "ppr_heldout"
    step = 0 if moment == BEFORE else run.config.ppr.steps
    with MetricsWriter(directory.parent, jax.process_index()) as writer:
        writer.resume(stage, step - 1)
        writer.write(stage, step, metrics)
    return frozenset(pair.example_id for pair in pairs)


def right_answers(answers: Sequence[Trajectory], tasks: Sequence[Task]) -> np.ndarray:
    """Returns [questions] 1.0 for each right answer; an invalid one is wrong."""
    right = [a.choice == correct_choice(task) for a, task in zip(answers, tasks, strict=True)]
    return np.array(right, np.float64)


def accuracy_metrics(
    right: np.ndarray, pairs: Sequence[HardPair], users: Sequence[int]
) -> dict[str, Metric]:
    """Returns accuracy with its 95% interval, of all pairs and of each kind that occurs.

    Args:
      right: [2 * pairs] 1 for a right answer, a MORE and a LESS question of each pair.
      pairs: with ``decidable``.
      users: [pairs] that the interval is drawn over.

    Example:
      >>> pairs = [HardPair(1, 5, 6, 1.0, True), HardPair(2, 5, 6, 1.0, False)]
      >>> metrics = accuracy_metrics(np.array([1, 1, 0, 1]), pairs, users=[0, 1])
      >>> metrics["accuracy"], metrics["accuracy_decidable"], metrics["accuracy_undecidable"]
      ((3.0, 4.0), (2.0, 2.0), (1.0, 2.0))
      >>> metrics["accuracy_low"], metrics["accuracy_high"]
      (0.5, 1.0)
    """
    metrics: dict[str, Metric] = {}
    for kind, mask in _kinds(pairs).items():
        name = "accuracy" if kind == "all" else f"accuracy_{kind}"
        values = right[mask]
        low, high = bootstrap_interval(values, np.repeat(users, 2)[mask])
        metrics[name] = (float(values.sum()), float(len(values)))
        metrics |= {f"{name}_low": low, f"{name}_high": high}
    return metrics


def preference_rows(run: Run, seeds: Sequence[int]) -> list[dict]:
    """Returns the accuracy on held-out pairs before and after ``ppr``, over all seeds.

    Args:
      run: of the experiment, with a directory for each seed.
      seeds: of training.

    Returns:
      a row for all pairs, and for the decidable and the undecidable ones if there are any, as
      docs/reference/metrics.md describes it; nothing where no pair was held out.
    """
    pairs: list[HardPair] = []
    right: dict[str, list[np.ndarray]] = {BEFORE: [], AFTER: []}
    for seed in seeds:
        directory = run.workdir / f"seed_{seed}" / "ppr"
        held_out = _held_out_pairs(run, directory)
        if not held_out:
            continue
        pairs += held_out
        tasks = preference_tasks(held_out, run.data.by_id("policy"), seed)
        for moment, values in right.items():
            groups = read_groups(directory / f"heldout_{moment}.jsonl", 1)
            values.append(right_answers([group[0] for group in groups], tasks))
    if not pairs:
        return []
    users = np.repeat(_users(run, pairs), 2)
    before = np.concatenate(right[BEFORE])
    after = np.concatenate(right[AFTER])
    rows = []
    for kind, mask in _kinds(pairs).items():
        difference = paired_difference(after[mask], before[mask], users[mask])
        row = {
            "pairs": kind,
            "questions": int(mask.sum()),
            "before": float(before[mask].mean()),
            "before_interval": list(bootstrap_interval(before[mask], users[mask])),
            "after": float(after[mask].mean()),
            "after_interval": list(bootstrap_interval(after[mask], users[mask])),
            "difference": difference.mean,
            "interval": [difference.low, difference.high],
        }
        rows.append(row | {"sentence": preference_sentence(row)})
    return rows


def preference_sentence(row: Mapping) -> str:
    """Returns a row of `preference_rows` in words.

    Example:
      >>> row = {"pairs": "decidable", "questions": 48, "before": 0.25, "after": 0.5}
      >>> row |= {"difference": 0.25, "interval": [0.125, 0.375]}
      >>> preference_sentence(row).split(". ")[1]
      'After is above before: +0.250 [+0.125, +0.375].'
    """
    low, high = row["interval"]
    difference = Difference(row["difference"], low, high)
    return (
        f"Held-out pairs ({row['pairs']}, n {row['questions']}): accuracy {row['before']:.3f} "
        f"before ppr, {row['after']:.3f} after. After is {difference.relation} before: "
        f"{difference.mean:+.3f} [{low:+.3f}, {high:+.3f}]."
    )


def _kinds(pairs: Sequence[HardPair]) -> dict[str, np.ndarray]:
    """Returns a mask of the questions, bool [2 * pairs], for each kind of pairs that occurs."""
    decidable = np.repeat([bool(pair.decidable) for pair in pairs], 2)
    kinds = {
        "all": np.ones(len(decidable), bool),
        "decidable": decidable,
        "undecidable": ~decidable,
    }
    return {kind: mask for kind, mask in kinds.items() if mask.any()}


def _held_out_pairs(run: Run, directory: Path) -> list[HardPair]:
    path = directory / HELDOUT
    # Process 0 decides for all: the others may not see its new files yet.
    if not multihost.allgather(path.exists())[0]:
        return []
    return read_pairs(path, run.data.by_id("policy"))


def _users(run: Run, pairs: Sequence[HardPair]) -> list[int]:
    examples = run.data.by_id("policy")
    return [examples[pair.example_id].user for pair in pairs]
