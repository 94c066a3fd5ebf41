"""LLaRA on the run's policy and SASRec: its training on policy examples, and its row.

The SASRec is that of artifacts A, in training and in ranking: a projector is of the embeddings that
it was trained with, and artifacts B have others. The policy directory of the stage has both.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from flax import nnx
from jaxtyping import Float

from agenticrec_jax.bundled import resolve
from agenticrec_jax.data.examples import RankingExample, evenly_spread
from agenticrec_jax.language.llara import (
    Curriculum,
    ItemQwen3,
    load_projector,
    save_projector,
    with_projector,
)
from agenticrec_jax.language.titles import candidate_group, likelihoods, title_logprobs
from agenticrec_jax.parallel.mesh import shard_params
from agenticrec_jax.parallel.multihost import main_writes
from agenticrec_jax.paths import Path
from agenticrec_jax.runs.imitation import imitate
from agenticrec_jax.runs.language import evaluate_scores, stage_packing, stage_record
from agenticrec_jax.runs.policy import Policy
from agenticrec_jax.runs.run import Run
from agenticrec_jax.runs.titles import title_prompts
from agenticrec_jax.training.logprobs import make_scorer

LLARA = "llara"


def train_llara(run: Run, policy: Policy, directory: Path, seed: int) -> Policy:
    """Trains policy and projector as ``config.llara`` says; returns the policy.

    The projector is written to the stage's policy directory.
    """
    settings = run.config.llara
    examples = evenly_spread(run.data.examples["policy"], settings.examples)
    model = with_projector(
        nnx.merge(policy.graphdef, policy.params),
        item_table(run, examples),
        rngs=nnx.Rngs(seed),
    )
    first_item_id = model.config.vocab_size
    prompts = title_prompts(run, policy, LLARA, examples, first_item_id)
    source = Curriculum(
        examples, settings.epochs, settings.batch, seed, prompts, first_item_id=first_item_id
    )
    graphdef, params = nnx.split(model)
    trained = imitate(
        dataclasses.replace(policy, graphdef=graphdef, params=params),
        LLARA,
        settings,
        source,
        stage_packing(run, policy, settings),
        run.mesh,
        directory,
        stage_record(run, LLARA, seed),
    )
    model = nnx.merge(trained.graphdef, trained.params)
    with main_writes("projector") as writes:
        if writes:
            items = run.data.log.items.item_id
            fit_range = run.artifacts_a.fit_range
            save_projector(model.projector, directory / LLARA / "policy", items, fit_range)
    shared = {name: value for name, value in trained.params.items() if name != "projector"}
    return dataclasses.replace(policy, params=nnx.State(shared))


def item_table(run: Run, examples: Sequence[RankingExample]) -> Float[np.ndarray, "I E"]:
    """Returns the item embeddings of the SASRec of artifacts A, which saw none of the examples."""
    earliest = min(examples, key=lambda example: example.time)
    index = run.artifacts_a.as_of(earliest).sasrec_index
    return np.asarray(index.model.item_embeddings)


def evaluate_llara(run: Run, examples: Sequence[RankingExample], *, name: str, split: str) -> dict:
    """Ranks examples by the likelihood of titles, as `language.evaluate_scores`.

    Raises:
      InputError: the policy directory has no projector, or one of another log or policy.
    """
    policy = run.policy
    model = nnx.merge(policy.graphdef, policy.params)
    config = model.config
    items = run.data.log.items.item_id
    projector, fit_range = load_projector(resolve(run.policy_directory), config, items)
    for example in examples:
        fit_range.check(example.time, f"{run.policy_directory}/projector.json")
    graphdef, params = nnx.split(ItemQwen3(model, projector))
    params = params if run.mesh is None else shard_params(params, run.mesh)
    prompts = title_prompts(run, policy, LLARA, examples, config.vocab_size)
    score = make_scorer(graphdef, mesh=run.mesh)
    packing = stage_packing(run, policy, run.config.llara, token_budget=1)

    def scores_of(example: RankingExample) -> Float[np.ndarray, "C"]:
        group = candidate_group(prompts, example, config.vocab_size)
        return likelihoods(title_logprobs(score, params, group, packing))

    words = prompts.title_words
    return evaluate_scores(run, examples, scores_of, name=name, split=split, title_words=words)
