"""Pretraining of the tiny policy: skills from dense labels, before any reinforcement."""

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from optax.contrib import MuonDimensionNumbers

from agenticrec_jax.agent.episodes import Agent
from agenticrec_jax.agent.scripted import DRAFT
from agenticrec_jax.agent.scripts import script_of
from agenticrec_jax.agent.tasks import LESS, MORE
from agenticrec_jax.data.candidates import draw_candidates
from agenticrec_jax.data.examples import evenly_spread
from agenticrec_jax.paths import Path
from agenticrec_jax.runs.config import RunConfig
from agenticrec_jax.runs.data import RunData
from agenticrec_jax.runs.policy import Policy
from agenticrec_jax.runs.pretraining_config import PretrainingConfig
from agenticrec_jax.runtime.checkpoints import Checkpoints
from agenticrec_jax.runtime.metric_logging import MetricsWriter, mean_of
from agenticrec_jax.training.hooks import StepHooks
from agenticrec_jax.training.judge import fit_judge, with_affinity
from agenticrec_jax.training.learner import TrainState
from agenticrec_jax.training.skill_rows import SkillSource, number_ids, pack_skills
from agenticrec_jax.training.skill_sources import Episodes, Fusing, Reading
from agenticrec_jax.training.skills import SkillBatch, skill_loss

STAGE = "pretraining"
DRAWS = 8  # of candidates for each sample that the judge is fitted on
MOST_FITTED = 20_000  # samples
# Of the last lesson: its labels say which of two near scores is the higher one.
POWER = 32.0  # worth of a candidate in a fused list: its score to this power
SHARPER = 3.0  # factor of the sharpness of drafts
_SHARED = ("loss", "gradient_norm")  # metrics of every skill


def skill_sources(
    agent: Agent, data: RunData, config: RunConfig, seed: int = 0
) -> dict[str, SkillSource]:
    """Returns the sources of the lessons, by the names that `PretrainingConfig` gives them.

    ``weighing`` is ``fusing`` of two orders or more, always with weights. ``drafting`` is
    ``reading`` whose drafts are less at random, and so is ``choosing`` beside ``episodes``; many of
    its plans, not most, rank by all that they can read. Reinforcement then starts from a policy
    that uses its evidence, and can carry out any choice of it.

    Four are about preference questions. ``pairing`` is ``fusing`` of two candidates, and
    ``preferring`` is ``choosing`` of pairs. In ``answering`` and ``concluding`` the list of such a
    pair is given, in a drill and in an episode, and only what follows from it is learned.

    Reading is about the samples that the agent's artifacts are fitted on, with candidates drawn as
    for all splits. Episodes are about the policy's samples, since tools refuse earlier ones.

    Args:
      agent: with the tools of artifacts A, and the prompts of the policy.
      data: of the run.
      config: of the run.
      seed: of the candidates.
    """
    samples = evenly_spread(data.splits.fit, MOST_FITTED)
    draws = [
        draw_candidates(data.log, samples, config.dataset.negatives, seed=seed + draw, split="fit")
        for draw in range(DRAWS)
    ]
    prompts = agent.prompts
    judge = fit_judge(
        data.log, draws[0], agent.artifacts.fit_range, lambda item: tuple(prompts.title_ids(item))
    )
    judge = with_affinity(judge, draws)
    sharpness = config.pretraining.sharpness
    reading = Reading(agent, judge, [example for draw in draws for example in draw], sharpness)
    episodes = Episodes(agent, judge, data.examples["policy"], sharpness=sharpness)
    labels = (*script_of(agent.toolbox.names).labels, DRAFT)
    fusing = Fusing(prompts, labels, candidates=config.dataset.negatives + 1)
    longer = {"orders": (2, len(labels)), "lengths": (2, 4, 7, 10, 10, 10), "least": 2}
    weighing = dataclasses.replace(fusing, fused=1.0, power=POWER, **longer)
    pairs = {"candidates": 2, "lengths": (2,), "orders": (1, len(labels)), "tasks": (MORE, LESS)}
    pairing = dataclasses.replace(fusing, **pairs)
    sharper = SHARPER * sharpness
    choosing = dataclasses.replace(episodes, thorough=0.4, power=POWER, sharpness=sharper)
    preferring = dataclasses.replace(choosing, preference=1.0)
    return {
        "fusing": fusing,
        "weighing": weighing,
        "pairing": pairing,
        "answering": dataclasses.replace(pairing, list_given=True),
        "reading": reading,
        "drafting": dataclasses.replace(reading, sharpness=sharper),
        "episodes": episodes,
        "choosing": choosing,
        "preferring": preferring,
        "concluding": dataclasses.replace(preferring, list_given=True),
    }


def pretrain(
    policy: Policy,
    sources: Mapping[str, SkillSource],
    settings: PretrainingConfig,
    directory: str | os.PathLike,
    seed: int = 0,
) -> Policy:
    """Trains a policy on ``settings.lessons``, on one device; returns the trained policy.

    Args:
      policy: to start from; its parameters are consumed.
      sources: of the lessons' skills, by name.
      settings: lessons, batch and optimizer.
      directory: of metrics, and of checkpoints in ``pretraining``; the run resumes from them.
      seed: of the rows.
    """
    lessons = (*settings.lessons, *settings.review)
    names = [name for lesson, steps in lessons for name in _turns(lesson, steps)]
    readouts = {
        readout.name: readout for name in dict.fromkeys(names) for readout in sources[name].readouts
    }
    model = nnx.merge(policy.graphdef, policy.params)
    width = model.config.hidden_size
    params = {
        "policy": policy.params,
        "readouts": {name: readout.init(width) for name, readout in readouts.items()},
    }
    optimizer = make_muon(settings)
    state = TrainState(params, jax.jit(optimizer.init)(params), jnp.zeros((), jnp.int32))
    ids = number_ids(policy.tokenizer)
    update = {
        name: _make_update(policy.graphdef, sources[name], ids, optimizer)
        for name in dict.fromkeys(names)
    }

    def batch_at(step: int) -> tuple[SkillBatch, int]:
        rng = np.random.default_rng((seed, step))
        source = sources[names[step]]
        prompts, members = getattr(settings, names[step])
        groups = [source.group(rng, members) for _ in range(prompts)]
        tokens = sum(len(row.ids) for group in groups for row in group.rows)
        return pack_skills(groups, source, policy.tokenizer), tokens

    record = {"pretraining": dataclasses.asdict(settings), "seed": seed}
    directory = Path(directory)
    with (
        Checkpoints(directory / STAGE / "checkpoints", record) as checkpoints,
        MetricsWriter(directory, jax.process_index()) as writer,
    ):
        hooks = StepHooks(
            STAGE,
            steps=len(names),
            save_every=settings.save_every,
            writer=writer,
            checkpoints=checkpoints,
        )
        state, start = hooks.resume(state)
        # The next batch is made while the device works on this one.
        batches = grain.MapDataset.range(start, len(names)).map(batch_at)
        ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        with hooks:
            began = time.perf_counter()
            for step, (batch, tokens) in enumerate(batches.to_iter_dataset(ahead), start):
                name = names[step]
                state, metrics = update[name](state, batch)
                metrics = {
                    key if key in _SHARED else f"{name}/{key}": (float(total), float(count))
                    for key, (total, count) in jax.device_get(metrics).items()
                    if count  # a skill without lists has no share of them
                }
                metrics["tokens_per_s"] = (tokens, time.perf_counter() - began)
                note = f"{name}, nll {mean_of(metrics[f'{name}/nll']):.3f}"
                if first := metrics.get(f"{name}/first"):
                    note += f", first {mean_of(first):.2f}"
                hooks.after_step(step + 1, state, metrics, note=note)
                began = time.perf_counter()
    return dataclasses.replace(policy, params=state.params["policy"])


def _turns(lesson: Sequence[str], steps: int) -> list[str]:
    """Returns the skill of each step of a lesson, one after the other in turn."""
    return [lesson[step % len(lesson)] for step in range(steps)]


def make_muon(settings: PretrainingConfig) -> optax.GradientTransformation:
    """Returns Muon for matrices, and Adam for embeddings, norms and readouts.

    Muon (Jordan et al., 2024) moves all directions of a matrix alike; its step is scaled to that of
    AdamW (Liu et al., arXiv:2502.16982). The rates rise over ``settings.warmup_steps``, and fall
    in a line over the last part of all steps; likewise in the review.

    Args:
      settings: rates and lessons.
    """
    taught = sum(steps for _, steps in settings.lessons)
    reviewed = sum(steps for _, steps in settings.review)

    def rise_and_fall(peak: float, steps: int) -> Callable:
        def at(step):
            rise = jnp.minimum(1.0, (step + 1) / max(settings.warmup_steps, 1))
            left = (steps - step) / max(settings.decay * steps, 1)
            return peak * rise * jnp.clip(left, 0.02, 1.0)

        return at

    def rate(peak: float) -> Callable:
        review = rise_and_fall(peak * settings.review_rate, reviewed)
        return optax.join_schedules([rise_and_fall(peak, taught), review], [taught])

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.contrib.muon(
            rate(settings.learning_rate),
            adam_learning_rate=rate(settings.embedding_rate),
            adam_b2=0.98,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=_dimension_numbers,
        ),
    )


def _dimension_numbers(params: Any) -> Any:
    def numbers(path: tuple, leaf: jax.Array) -> MuonDimensionNumbers | None:
        names = [str(getattr(key, "key", getattr(key, "name", key))) for key in path]
        if names[0] != "policy" or "kernel" not in names or leaf.ndim < 2:
            return None
        if "o" in names:
            return MuonDimensionNumbers((0, 1), 2)
        return MuonDimensionNumbers(0, tuple(range(1, leaf.ndim)))

    return jax.tree_util.tree_map_with_path(numbers, params)


def _make_update(
    graphdef: nnx.GraphDef,
    source: SkillSource,
    ids: np.ndarray,
    optimizer: optax.GradientTransformation,
) -> Callable[[TrainState, SkillBatch], tuple[TrainState, dict]]:
    def loss_of(params: Any, batch: SkillBatch) -> tuple[jax.Array, dict]:
        model = nnx.merge(graphdef, params["policy"])
        return skill_loss(model, params["readouts"], batch, source.readouts, ids)

    def update(state: TrainState, batch: SkillBatch) -> tuple[TrainState, dict]:
        (loss, metrics), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params, batch)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics |= {"loss": (loss, 1.0), "gradient_norm": (optax.global_norm(gradients), 1.0)}
        return TrainState(params, opt_state, state.step + 1), metrics

    return jax.jit(update, donate_argnums=0)
