"""Makes the embedded tiny policy: tokenizer, random weights, warm start, gate.

``python -m experiments.make_policy --workdir=DIR --output=tools_data/tiny_policy`` takes about an
hour on 2 cores, resumes where it was stopped, and is run by nothing else: the quickstart and the
tests read the committed directory.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from agenticrec_jax import save_policy
from agenticrec_jax.agent import scripted
from agenticrec_jax.agent.episodes import Agent
from agenticrec_jax.agent.prompts import PromptBuilder
from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.data.splits import FitRange
from agenticrec_jax.losses import for_batch, sft_loss
from agenticrec_jax.models.qwen3 import Qwen3, Qwen3Config
from agenticrec_jax.models.tokenizers import CompactTokenizer, train_tokenizer
from agenticrec_jax.tools.base import AsOfView, Toolbox
from agenticrec_jax.training.batches import Packing
from agenticrec_jax.training.checkpoints import Checkpoints
from agenticrec_jax.training.learner import init_state, make_optimizer, make_update
from agenticrec_jax.training.metrics import MetricsWriter, Progress
from agenticrec_jax.training.warm_start import WarmStart, curriculum
from experiments import app, pipeline

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory for checkpoints and metrics.")
_OUTPUT = flags.DEFINE_string("output", "tools_data/tiny_policy", "Policy directory to write.")
_CONFIG = pipeline.define_config("experiments/configs/office.py")

JSON_SYMBOLS = ('{"name":"', '","arguments":{', "}}", '"item_name":"', '"}', "{", "}", '"', "_")
QUOTES = ("‹", "›")


def main(argv) -> None:
    del argv
    config = _CONFIG.value
    workdir = pipeline.make_workdir(_WORKDIR.value)
    with app.phase("data and tools"):
        world = pipeline.prepare(config, workdir)
        artifacts = pipeline.artifacts_a(world)
    toolbox = pipeline.toolbox(config, artifacts)
    tokenizer = fit_tokenizer(world, toolbox, artifacts.fit_range, config.warm_start.vocab_size)
    prompts = PromptBuilder(tokenizer, world.log.items, config.policy.title_tokens)
    agent = Agent(world.log, toolbox, artifacts, prompts)
    model = random_policy(config.warm_start, tokenizer.vocab_size)
    with app.phase("warm start"):
        params = warm_start(config, agent, world.examples["policy"], model, workdir)
    save(model, params, tokenizer, Path(_OUTPUT.value))


def fit_tokenizer(
    world: pipeline.World, toolbox: Toolbox, fit_range: FitRange, vocab_size: int
) -> CompactTokenizer:
    """A tokenizer fitted on titles inside the fit range and on the demonstrator's own words."""
    lines = [*_titles(world.log, fit_range), *_episodes(world, toolbox)]
    return train_tokenizer(lines, vocab_size, [*toolbox.names, *JSON_SYMBOLS, *QUOTES])


def _titles(log: InteractionLog, fit_range: FitRange) -> Iterator[str]:
    for item in np.unique(log.item[log.before(fit_range.end_time)]):
        yield f" {log.items.title[item]}"
        yield f" {log.items.brand[item] or 'no brand'}"


def _episodes(world: pipeline.World, toolbox: Toolbox, count: int = 600) -> Iterator[str]:
    rng = np.random.default_rng(0)
    for example in world.examples["policy"][:count]:
        plan = scripted.draw_plan(rng, toolbox.names)
        for _, text in scripted.demonstrate(plan, AsOfView(world.log, example), toolbox).turns:
            yield from text.replace(">", "<").split("<")


def random_policy(config, vocab_size: int, seed: int = 0) -> Qwen3:
    """A small random Qwen3 whose matrices are scaled by their fan-in (LeCun et al., 1998).

    The standard deviation of .02 that large models start from learns to copy three times slower
    at this width.
    """
    shape = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        rope_theta=config.rope_theta,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        max_position_embeddings=1024,
    )
    graphdef, params = nnx.split(Qwen3(shape, rngs=nnx.Rngs(seed)))
    flat = [
        (path, leaf.replace(_by_fan_in(path, leaf[...])))
        for path, leaf in nnx.to_flat_state(params)
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


def _by_fan_in(path: tuple, value: jax.Array) -> jax.Array:
    if path[-1] != "kernel":
        return value
    fan_in = value.size // value.shape[-1] if path[-2] == "o" else value.shape[0]
    return value / jnp.std(value) * fan_in**-0.5


def warm_start(config, agent: Agent, examples, model: Qwen3, workdir: Path):
    """Trains the model's parameters through the curriculum; resumes from ``workdir``."""
    graphdef, params = nnx.split(model)
    settings = config.warm_start
    lessons = curriculum(
        config.policy.title_tokens, settings.drills, settings.growing, settings.final
    )
    source = WarmStart(agent, examples, lessons, settings.prompts, settings.members, config.seed)
    optimizer = make_optimizer(
        settings.learning_rate, warmup_steps=20, decay_steps=source.steps, b2=0.98
    )
    update = make_update(graphdef, for_batch(sft_loss), optimizer)
    state = init_state(params, optimizer)
    packing = Packing(settings.token_budget, pad_id=agent.prompts.tokenizer.pad_id)
    record = {"warm_start": settings.to_dict(), "policy": config.policy.to_dict()}
    with (
        Checkpoints(workdir / "warm_start", record) as checkpoints,
        MetricsWriter(workdir) as writer,
    ):
        restored = checkpoints.restore(state)
        start = restored.step if restored else 0
        state = restored.state if restored else state
        writer.resume("sft", start)
        with Progress("warm start", source.steps, done=start) as progress:
            for step in range(start, source.steps):
                state, metrics = update(state, source.batches(step, packing))
                lesson = source.lesson_at(step).name
                writer.write("sft", step, metrics)
                progress.advance(note=f"{lesson} nll {metrics['nll'][0] / metrics['nll'][1]:.3f}")
                if (step + 1) % settings.save_every == 0 or step + 1 == source.steps:
                    checkpoints.save(step + 1, state)
    return state.params


def save(model: Qwen3, params, tokenizer: CompactTokenizer, output: Path) -> None:
    """Writes the policy in bfloat16 with its tokenizer and the record of how it was made."""
    config = dataclasses.replace(model.config, param_dtype="bfloat16")
    graphdef, _ = nnx.split(Qwen3(config, rngs=nnx.Rngs(0)))
    halved = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    save_policy(nnx.merge(graphdef, halved), output)
    tokenizer.save(output)
    made = {"made_by": "python -m experiments.make_policy", "warm_start": _CONFIG.value.to_dict()}
    (output / "made.json").write_text(json.dumps(made, indent=1, default=str) + "\n")


if __name__ == "__main__":
    app.run(main)
