"""Making of the embedded tiny policy: tokenizer, random weights, warm start, gate."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from agenticrec_jax.agent import scripted
from agenticrec_jax.agent.episodes import Agent
from agenticrec_jax.agent.prompts import CompactPrompts
from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.data.splits import FitRange
from agenticrec_jax.errors import InputError
from agenticrec_jax.evaluation.baselines import scripted as scripted_rows
from agenticrec_jax.evaluation.evaluator import copy_accuracy, evaluate, summary_row
from agenticrec_jax.metrics.ranking import ndcg_at_k
from agenticrec_jax.models.qwen3 import Qwen3, Qwen3Config
from agenticrec_jax.runs.config import RunConfig
from agenticrec_jax.runs.data import RunData, evenly_spread
from agenticrec_jax.runs.imitation import warm_start
from agenticrec_jax.runs.policy import Policy, save_policy
from agenticrec_jax.runs.run import Run
from agenticrec_jax.runs.stage_config import WarmStartConfig
from agenticrec_jax.runtime.phases import phase
from agenticrec_jax.tokenizers.compact import CompactTokenizer, train_tokenizer
from agenticrec_jax.tools.base import AsOfView, Toolbox

JSON_SYMBOLS = ('{"name":"', '","arguments":{', "}}", '"item_name":"', '"}', "{", "}", '"', "_")
QUOTES = ("‹", "›")
FOLLOWED, INVALID = 0.95, 0.02  # required of the policy before any reinforcement


def make_tiny_policy(config: RunConfig, workdir: str | Path, output: str | Path) -> dict:
    """Makes a policy directory for the config's log; returns the gate's report.

    Args:
      config: of the run; ``config.warm_start`` has the architecture and the curriculum.
      workdir: of data, artifacts and checkpoints; the warm start resumes from there.
      output: policy directory to write.

    Raises:
      InputError: the policy follows a shown order in less than .95 of the places, or more than
        .02 of its answers are invalid.
    """
    run = Run(config, workdir)
    with phase("data and tools"):
        artifacts, examples = run.artifacts_a, run.data.examples["policy"]
    toolbox = run.toolbox(artifacts)
    tokenizer = fit_tokenizer(run.data, toolbox, artifacts.fit_range, config.warm_start)
    prompts = CompactPrompts(tokenizer, run.data.log.items, config.policy.title_tokens)
    agent = Agent(run.data.log, toolbox, artifacts, prompts)
    graphdef, params = nnx.split(random_policy(config.warm_start, tokenizer.vocab_size))
    with phase("warm start"):
        trained = warm_start(
            Policy(graphdef, params, tokenizer, weights_hash=""),
            agent,
            examples,
            config=config,
            mesh=run.mesh,
            directory=run.workdir,
            seed=config.seed,
        )
    save_policy(_in_bfloat16(trained), output)
    with phase("gate"):
        report = gate(Run(config, workdir, policy_directory=output))
    record = {"made_by": "python -m experiments.make_policy", "gate": report}
    record["config"] = dataclasses.asdict(config)
    (Path(output) / "made.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    if report["single"]["followed"] < FOLLOWED or report["single"]["invalid"] > INVALID:
        raise InputError(
            f"{output}: found a policy that follows {report['single']}, expected at least "
            f"{FOLLOWED} of the places and at most {INVALID} invalid"
        )
    return report


def gate(run: Run, count: int = 400) -> dict:
    """Measures the skills of the run's policy before any reinforcement, on valid examples.

    Args:
      run: of the saved policy.
      count: valid examples, evenly spread over time.

    Returns:
      ``single``: how well greedy lists follow one shown order; ``merged``: the same for decisions
      that name several; ``fused``: the same for weighted orders, where the policy was taught to
      fuse; ``greedy``: the policy's row of the results table;
      ``demonstrator_ndcg@10``: of the random plans that it was taught with.
    """
    agent, params = run.evaluation_agent, run.policy.params
    examples = evenly_spread(run.data.examples["valid"], count)
    plans = scripted.fixed_plans()
    single = [plan for plan in plans if plan.priority in (("popular",), ("similar",), ("taken",))]
    merged = [plan for plan in plans if len(plan.priority) > 1]
    trajectories = evaluate(agent, run.engine, params, examples)
    evidence = scripted_rows.gather_evidence(run.data.log, agent.toolbox, run.artifacts_b, examples)
    rng = np.random.default_rng(run.config.seed)
    share = run.config.warm_start.fused
    random_ranks = [
        scripted_rows.plan_ranks(
            scripted.draw_plan(rng, agent.toolbox.names, fused=share), [orders], [example]
        )
        for orders, example in zip(evidence, examples, strict=True)
        for _ in range(20)
    ]

    def follow(some_plans: list[scripted.Plan]) -> dict[str, Any]:
        return dataclasses.asdict(copy_accuracy(agent, run.engine, params, examples, some_plans))

    report = {"single": follow(single), "merged": follow(merged)}
    if share:
        weights = [tuple(rng.integers(1, scripted.MAX_WEIGHT + 1, len(p.priority))) for p in merged]
        fused = [dataclasses.replace(p, weights=w) for p, w in zip(merged, weights, strict=True)]
        report["fused"] = follow(fused)
    return report | {
        "greedy": summary_row("greedy", trajectories, examples),
        "demonstrator_ndcg@10": ndcg_at_k(np.concatenate(random_ranks), 10),
    }


def fit_tokenizer(
    data: RunData, toolbox: Toolbox, fit_range: FitRange, settings: WarmStartConfig
) -> CompactTokenizer:
    """Returns a tokenizer fitted on titles inside the fit range and on the demonstrator's words."""
    lines = [*_titles(data.log, fit_range), *_demonstrations(data, toolbox, settings.fused)]
    labels = [f"{label}:" for label in scripted.LABELS]
    symbols = [*toolbox.names, *labels, *JSON_SYMBOLS, *QUOTES]
    if settings.fused:
        symbols += [scripted.weight_word(w) for w in range(1, scripted.MAX_WEIGHT + 1)]
    return train_tokenizer(lines, settings.vocab_size, symbols)


def _titles(log: InteractionLog, fit_range: FitRange) -> Iterator[str]:
    for item in np.unique(log.item[log.before(fit_range.end_time)]):
        yield f" {log.items.title[item]}"
        yield f" {log.items.brand[item] or 'no brand'}"


def _demonstrations(
    data: RunData, toolbox: Toolbox, fused: float, count: int = 600
) -> Iterator[str]:
    rng = np.random.default_rng(0)
    for example in data.examples["policy"][:count]:
        plan = scripted.draw_plan(rng, toolbox.names, fused=fused)
        for _, text in scripted.demonstrate(plan, AsOfView(data.log, example), toolbox).turns:
            yield from text.replace(">", "<").split("<")


def random_policy(config: WarmStartConfig, vocab_size: int, seed: int = 0) -> Qwen3:
    """Returns a small random Qwen3 whose matrices are scaled by their fan-in (LeCun et al., 1998).

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
        (path, leaf.replace(_scale_by_fan_in(path, leaf[...])))
        for path, leaf in nnx.to_flat_state(params)
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


def _scale_by_fan_in(path: tuple, value: jax.Array) -> jax.Array:
    if path[-1] != "kernel":
        return value
    fan_in = value.size // value.shape[-1] if path[-2] == "o" else value.shape[0]
    return value / jnp.std(value) * fan_in**-0.5


def _in_bfloat16(policy: Policy) -> Policy:
    """Returns the policy with weights to be stored in half the bytes."""
    model = nnx.merge(policy.graphdef, policy.params)
    config = dataclasses.replace(model.config, param_dtype="bfloat16")
    graphdef, _ = nnx.split(Qwen3(config, rngs=nnx.Rngs(0)))
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), policy.params)
    return dataclasses.replace(policy, graphdef=graphdef, params=params)
