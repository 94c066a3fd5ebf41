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
from agenticrec_jax.agent.prompts import CompactPrompts
from agenticrec_jax.cli import app
from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.data.splits import FitRange
from agenticrec_jax.errors import InputError
from agenticrec_jax.evaluation.baselines import scripted as scripted_rows
from agenticrec_jax.evaluation.evaluator import copy_accuracy, evaluate, summary_row
from agenticrec_jax.metrics.ranking import ndcg_at_k
from agenticrec_jax.models.qwen3 import Qwen3, Qwen3Config
from agenticrec_jax.runs import pipeline
from agenticrec_jax.runs import policy as policies
from agenticrec_jax.runtime.phases import phase
from agenticrec_jax.tokenizers.compact import CompactTokenizer, train_tokenizer
from agenticrec_jax.tools.base import AsOfView, Toolbox
from experiments import train_policy

JSON_SYMBOLS = ('{"name":"', '","arguments":{', "}}", '"item_name":"', '"}', "{", "}", '"', "_")
QUOTES = ("‹", "›")
FOLLOWED, INVALID = 0.95, 0.02  # what the policy must reach before any reinforcement


def main(argv) -> None:
    del argv
    config = _CONFIG.value
    workdir = pipeline.make_workdir(_WORKDIR.value)
    with phase("data and tools"):
        world = pipeline.prepare(config, workdir)
        artifacts = pipeline.artifacts_a(world)
    toolbox = pipeline.toolbox(config, artifacts, world.log.items)
    tokenizer = fit_tokenizer(world, toolbox, artifacts.fit_range, config.warm_start.vocab_size)
    prompts = CompactPrompts(tokenizer, world.log.items, config.policy.title_tokens)
    agent = Agent(world.log, toolbox, artifacts, prompts)
    model = random_policy(config.warm_start, tokenizer.vocab_size)
    with phase("warm start"):
        params = train_policy.warm_start(world, agent, *nnx.split(model))
    output = Path(_OUTPUT.value)
    save(model, params, tokenizer, output)
    with phase("gate"):
        report = gate(world, output)
    made = {"made_by": "python -m experiments.make_policy", "gate": report}
    made["config"] = config.to_dict()
    (output / "made.json").write_text(json.dumps(made, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    if report["single"]["followed"] < FOLLOWED or report["single"]["invalid"] > INVALID:
        raise InputError(
            f"{output}: found a policy that follows {report['single']}, expected at least "
            f"{FOLLOWED} of the places and at most {INVALID} invalid"
        )


def gate(world: pipeline.World, directory: Path, count: int = 400) -> dict:
    """What the saved policy can do before any reinforcement, on held-back (valid) samples.

    ``single``: how well greedy lists follow one order that was shown; ``merged``: the same for
    decisions that name several; ``ndcg@10`` of the greedy policy beside the random plans that it
    was taught with.
    """
    config = world.config
    policy = policies.load(str(directory))
    artifacts = pipeline.artifacts_b(world)
    agent = pipeline.agent(world, artifacts, policy.tokenizer)
    engine = pipeline.engine(config, policy)
    examples = pipeline.chosen(world.examples["valid"], count)
    plans = scripted.fixed_plans()
    single = [plan for plan in plans if plan.priority in (("popular",), ("similar",), ("taken",))]
    merged = [plan for plan in plans if len(plan.priority) > 1]
    judged = evaluate(agent, engine, policy.params, examples)
    shown = scripted_rows.gather_evidence(world.log, agent.toolbox, artifacts, examples)
    rng = np.random.default_rng(config.seed)
    random_ranks = [
        scripted_rows.plan_ranks(scripted.draw_plan(rng, agent.toolbox.names), [orders], [example])
        for orders, example in zip(shown, examples, strict=True)
        for _ in range(20)
    ]
    return {
        "single": _copying(agent, engine, policy, examples, single),
        "merged": _copying(agent, engine, policy, examples, merged),
        "greedy": summary_row("greedy", judged, examples),
        "demonstrator_ndcg@10": ndcg_at_k(np.concatenate(random_ranks), 10),
    }


def _copying(agent, engine, policy, examples, plans) -> dict:
    return dataclasses.asdict(copy_accuracy(agent, engine, policy.params, examples, plans))


def fit_tokenizer(
    world: pipeline.World, toolbox: Toolbox, fit_range: FitRange, vocab_size: int
) -> CompactTokenizer:
    """A tokenizer fitted on titles inside the fit range and on the demonstrator's own words."""
    lines = [*_titles(world.log, fit_range), *_episodes(world, toolbox)]
    labels = [f"{label}:" for label in scripted.LABELS]
    symbols = [*toolbox.names, *labels, *JSON_SYMBOLS, *QUOTES]
    return train_tokenizer(lines, vocab_size, symbols)


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


def save(model: Qwen3, params, tokenizer: CompactTokenizer, output: Path) -> None:
    """Writes the policy in bfloat16, with its tokenizer."""
    config = dataclasses.replace(model.config, param_dtype="bfloat16")
    graphdef, _ = nnx.split(Qwen3(config, rngs=nnx.Rngs(0)))
    halved = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    save_policy(nnx.merge(graphdef, halved), output)
    tokenizer.save(output)


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
    _OUTPUT = flags.DEFINE_string("output", "tools_data/tiny_policy", "Policy directory to write.")
    _CONFIG = pipeline.define_config("experiments/configs/office.py")
    app.run(main)
