"""ReRe on the run's policy: its reinforcement on policy examples, and its row."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from agenticrec_jax.data.examples import RankingExample, evenly_spread
from agenticrec_jax.errors import expect
from agenticrec_jax.language.rere import beam_group
from agenticrec_jax.language.titles import TitlePrompts, candidate_group, title_logprobs
from agenticrec_jax.losses import for_batch, grpo_loss
from agenticrec_jax.losses.reductions import Metrics
from agenticrec_jax.paths import Path
from agenticrec_jax.runs.language import stage_packing, stage_record
from agenticrec_jax.runs.policy import Policy
from agenticrec_jax.runs.run import Run
from agenticrec_jax.runs.titles import evaluate_titles, text_prompts
from agenticrec_jax.runtime.checkpoints import Checkpoints
from agenticrec_jax.runtime.metric_logging import MetricsWriter
from agenticrec_jax.training import supervised
from agenticrec_jax.training.epochs import Epochs
from agenticrec_jax.training.learner import init_state, make_optimizer, make_update
from agenticrec_jax.training.logprobs import make_scorer
from agenticrec_jax.training.packing import Packing, pack_groups
from agenticrec_jax.training.references import Scorer
from agenticrec_jax.training.types import Group, RolloutBatch

RERE = "rere"


def train_rere(run: Run, policy: Policy, directory: Path, seed: int) -> Policy:
    """Reinforces the policy on its beams, as ``config.rere`` says; returns the policy.

    The reference policy is the one that the stage starts from.

    Raises:
      InputError: the run has several processes.
    """
    processes = jax.process_count()
    expect(processes == 1, "processes of stage rere", processes, "1")
    settings = run.config.rere
    examples = evenly_spread(run.data.examples["policy"], settings.examples)
    prompts = text_prompts(run, policy, examples)
    source = Epochs(examples, settings.epochs, settings.batch, seed)
    score = make_scorer(policy.graphdef, mesh=run.mesh)
    optimizer = make_optimizer(
        settings.learning_rate, warmup_steps=settings.warmup_steps, decay_steps=source.steps
    )
    loss_fn = for_batch(grpo_loss, normalizer=1.0, kl_coef=settings.kl_coef)
    one_group = stage_packing(run, policy, settings, token_budget=1)
    packing = stage_packing(run, policy, settings)

    def searched(step: int, packing: Packing, params: Any) -> tuple[list[RolloutBatch], Metrics]:
        groups, metrics = searched_groups(
            score, params, prompts, source.items_at(step), one_group, width=settings.beams
        )
        return pack_groups(groups, packing), metrics

    record = stage_record(run, RERE, seed) | {"title_words": prompts.title_words}
    with (
        Checkpoints(directory / RERE / "checkpoints", record) as checkpoints,
        MetricsWriter(directory) as writer,
    ):
        state = supervised.train(
            RERE,
            source,
            init_state(policy.params, optimizer, run.mesh),
            update=make_update(policy.graphdef, loss_fn, optimizer, mesh=run.mesh),
            packing=packing,
            save_every=settings.save_every,
            writer=writer,
            checkpoints=checkpoints,
            score=score,
            progress_metric="beam_reward",
            batches=searched,
        )
    return dataclasses.replace(policy, params=state.params)


def searched_groups(
    score: Scorer,
    params: Any,
    prompts: TitlePrompts,
    examples: Sequence[RankingExample],
    packing: Packing,
    *,
    width: int,
) -> tuple[list[Group], Metrics]:
    """Returns the group of beams of each example, weighted for a mean over beams, and metrics.

    Args:
      score: of `training.logprobs.make_scorer`.
      params: parameters of the policy that searches.
      prompts: of the questions.
      examples: of a step.
      packing: of a group at a time.
      width: number of beams.
    """
    groups, rewards = [], []
    for example in examples:
        group = candidate_group(prompts, example)
        logprobs = title_logprobs(score, params, group, packing)
        target = example.target_number - 1
        group, of_beams = beam_group(group, logprobs, target, width=width)
        groups.append(group)
        rewards.append(of_beams)
    beams = sum(map(len, rewards))
    groups = [dataclasses.replace(group, weights=group.weights / beams) for group in groups]
    return groups, {
        "beam_reward": (float(sum(r.sum() for r in rewards)), float(beams)),
        "beam_recall": (float(sum(r.any() for r in rewards)), float(len(examples))),
    }


def evaluate_rere(run: Run, examples: Sequence[RankingExample], *, name: str, split: str) -> dict:
    """Ranks examples by the log-probs of whole titles, as `language.evaluate_scores`.

    The search has as many beams as candidates, so this is its order.
    """
    return evaluate_titles(run, examples, total_logprobs, name=name, split=split)


def total_logprobs(logprobs: Sequence[Float[np.ndarray, "T"]]) -> Float[np.ndarray, "C"]:
    """Returns the log-prob of each title, the score of ReRe's beams.

    >>> total_logprobs([np.array([-1.0, -3.0]), np.array([-2.5])]).tolist()
    [-4.0, -2.5]
    """
    return np.array([row.sum() for row in logprobs])
