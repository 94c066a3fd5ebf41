"""Preference pairs of a run: mined with its policy or read from a file."""

import dataclasses
from pathlib import Path

from agenticrec_jax.bundled import resolve
from agenticrec_jax.evaluation.evaluator import evaluate
from agenticrec_jax.parallel import multihost
from agenticrec_jax.runs.data import evenly_spread
from agenticrec_jax.runs.policy import Policy
from agenticrec_jax.runs.run import Run
from agenticrec_jax.runs.stage_config import SOFTMAX_DPO
from agenticrec_jax.runtime.phases import phase
from agenticrec_jax.training.mining import HardPair, mine_pairs, read_pairs, write_pairs
from agenticrec_jax.training.preferences import Preferences, choice_questions, first_rank_questions


def mined_pairs(
    run: Run, policy: Policy, directory: Path, *, count: int, seed: int
) -> list[HardPair]:
    """Returns hard pairs from the policy's greedy rankings, stored in ``pairs.jsonl``.

    Args:
      run: log, tools and engine.
      policy: that ranks.
      directory: of ``pairs.jsonl``; a file that is there is read instead.
      count: policy examples to rank; 0 for all.
      seed: of the draw of negatives.
    """
    path = directory / "pairs.jsonl"
    by_id = run.data.by_id("policy")
    if not multihost.allgather(path.exists())[0]:
        examples = evenly_spread(run.data.examples["policy"], count)
        with phase("mining"):
            ranked = evaluate(
                run.training_agent,
                run.engine,
                policy.params,
                multihost.nonempty_local_items(examples),
            )
        mined = mine_pairs(ranked, by_id, seed)
        shares = multihost.allgather([dataclasses.astuple(pair) for pair in mined])
        pairs = [HardPair(*fields) for share in shares for fields in share]
        pairs.sort(key=lambda pair: pair.example_id)
        with multihost.main_writes("pairs") as writes:
            if writes:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_pairs(path, pairs)
        print(f"{len(pairs)} hard pairs from {len(examples)} rankings")
    return read_pairs(path, by_id)


def stage_pairs(run: Run, policy: Policy, directory: Path, seed: int) -> list[HardPair]:
    """Returns the pairs of ``config.pairs.file``; without a file they are mined."""
    settings = run.config.pairs
    if settings.file:
        return read_pairs(resolve(settings.file), run.data.by_id("policy"))
    return mined_pairs(run, policy, directory / "pairs", count=settings.mining_examples, seed=seed)


def questions(run: Run, pairs: list[HardPair], seed: int) -> Preferences:
    """Returns batches of the questions that ``config.pairs.objective`` asks about pairs."""
    settings = run.config.pairs
    examples = run.data.by_id("policy")
    if settings.objective == SOFTMAX_DPO:
        questions_of = first_rank_questions(run.training_agent, examples, settings.negatives, seed)
    else:
        questions_of = choice_questions(run.training_agent, examples, seed)
    return Preferences(pairs, settings.epochs, settings.batch, seed, questions_of)
