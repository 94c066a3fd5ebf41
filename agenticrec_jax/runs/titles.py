"""Questions that are answered by titles: their fine-tuning, S-DPO, and the row of both."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float

from agenticrec_jax.data.examples import RankingExample, evenly_spread
from agenticrec_jax.errors import InputError
from agenticrec_jax.language.titles import (
    TitleAnswers,
    TitlePreferences,
    TitlePrompts,
    candidate_group,
    likelihoods,
    title_logprobs,
)
from agenticrec_jax.losses import dpo_preference_loss, for_batch
from agenticrec_jax.paths import Path
from agenticrec_jax.runs.imitation import imitate
from agenticrec_jax.runs.language import evaluate_scores, stage_packing, stage_record
from agenticrec_jax.runs.policy import Policy
from agenticrec_jax.runs.run import Run
from agenticrec_jax.runtime.checkpoints import Checkpoints
from agenticrec_jax.runtime.metric_logging import MetricsWriter
from agenticrec_jax.training import supervised
from agenticrec_jax.training.learner import init_state, make_optimizer, make_update
from agenticrec_jax.training.logprobs import make_scorer

TITLE_SFT = "title_sft"
S_DPO = "s_dpo"


def train_title_sft(run: Run, policy: Policy, directory: Path, seed: int) -> Policy:
    """Trains on the titles of targets, as ``config.title_sft`` says; returns the policy."""
    settings = run.config.title_sft
    examples = evenly_spread(run.data.examples["policy"], settings.examples)
    prompts = text_prompts(run, policy, examples)
    source = TitleAnswers(examples, settings.epochs, settings.batch, seed, prompts=prompts)
    packing = stage_packing(run, policy, settings)
    record = stage_record(run, TITLE_SFT, seed)
    return imitate(policy, TITLE_SFT, settings, source, packing, run.mesh, directory, record)


def train_s_dpo(run: Run, policy: Policy, directory: Path, seed: int) -> Policy:
    """Trains on preferences between titles, as ``config.s_dpo`` says; returns the policy.

    The reference policy is the one that the stage starts from.
    """
    settings = run.config.s_dpo
    examples = evenly_spread(run.data.examples["policy"], settings.examples)
    prompts = text_prompts(run, policy, examples)
    source = TitlePreferences(
        examples,
        settings.epochs,
        settings.batch,
        seed,
        prompts=prompts,
        negatives=settings.negatives,
    )
    optimizer = make_optimizer(
        settings.learning_rate, warmup_steps=settings.warmup_steps, decay_steps=source.steps
    )
    record = stage_record(run, S_DPO, seed) | {"title_words": prompts.title_words}
    loss_fn = for_batch(dpo_preference_loss, beta=settings.beta)
    with (
        Checkpoints(directory / S_DPO / "checkpoints", record) as checkpoints,
        MetricsWriter(directory, jax.process_index()) as writer,
    ):
        state = supervised.train(
            S_DPO,
            source,
            init_state(policy.params, optimizer, run.mesh),
            update=make_update(policy.graphdef, loss_fn, optimizer, mesh=run.mesh),
            packing=stage_packing(run, policy, settings),
            save_every=settings.save_every,
            writer=writer,
            checkpoints=checkpoints,
            score=make_scorer(policy.graphdef, mesh=run.mesh),
            progress_metric="preference_accuracy",
        )
    return dataclasses.replace(policy, params=state.params)


def evaluate_s_dpo(run: Run, examples: Sequence[RankingExample], *, name: str, split: str) -> dict:
    """Ranks examples by the likelihood of titles, as `language.evaluate_scores`."""
    return evaluate_titles(run, examples, likelihoods, name=name, split=split)


def evaluate_titles(
    run: Run,
    examples: Sequence[RankingExample],
    scores_of: Callable[[Sequence[Float[np.ndarray, "T"]]], Float[np.ndarray, "C"]],
    *,
    name: str,
    split: str,
) -> dict:
    """Ranks examples by the log-probs of titles, as `language.evaluate_scores`.

    Args:
      run: log, policy and workdir.
      examples: of the split.
      scores_of: the scores of candidates from the log-probs of their titles' tokens.
      name: of the row.
      split: ``valid`` or ``test``.
    """
    policy = run.policy
    prompts = text_prompts(run, policy, examples)
    score = make_scorer(policy.graphdef, mesh=run.mesh)
    packing = stage_packing(run, policy, run.config.title_sft, token_budget=1)

    def scores(example: RankingExample) -> Float[np.ndarray, "C"]:
        group = candidate_group(prompts, example)
        return scores_of(title_logprobs(score, policy.params, group, packing))

    words = prompts.title_words
    return evaluate_scores(run, examples, scores, name=name, split=split, title_words=words)


def text_prompts(run: Run, policy: Policy, examples: Sequence[RankingExample]) -> TitlePrompts:
    """Returns the questions of titles alone, by ``config.title_sft``; see `title_prompts`."""
    return title_prompts(run, policy, TITLE_SFT, examples)


def title_prompts(
    run: Run,
    policy: Policy,
    stage: str,
    examples: Sequence[RankingExample],
    first_item_id: int | None = None,
) -> TitlePrompts:
    """Returns the questions of training and of ranking, which must be the same.

    Args:
      run: log and settings.
      policy: whose tokenizer writes them.
      stage: whose settings say how long titles are.
      examples: that will be asked about.
      first_item_id: see `TitlePrompts.prompt`.

    Raises:
      InputError: an example does not fit the model's context.
    """
    context = nnx.merge(policy.graphdef, policy.params).config.max_position_embeddings
    words = getattr(run.config, stage).title_words
    prompts = TitlePrompts(policy.tokenizer, run.data.log.items, words)
    for example in examples:
        answers = prompts.answers(example.candidates)
        longest = max(len(answer.ids) for answer in answers)
        tokens = len(prompts.prompt(example, first_item_id)) + longest
        if tokens > context:
            raise InputError(
                f"config.{stage}.title_words: found {words}, with which example "
                f"{example.example_id} has {tokens} tokens, expected at most the {context} of the "
                "model's context"
            )
    return prompts
