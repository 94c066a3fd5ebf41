"""Making of the embedded tiny policy: tokenizer, random weights, pretraining, gate."""

import dataclasses
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from agenticrec_jax import strict_json
from agenticrec_jax.agent import protocol, scripted
from agenticrec_jax.agent.episodes import Agent
from agenticrec_jax.agent.prompts import COMPACT_PHRASES, CompactPrompts
from agenticrec_jax.agent.scripts import script_of
from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.data.examples import RankingExample, evenly_spread
from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.data.splits import FitRange
from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.evaluation.baselines import scripted as scripted_rows
from agenticrec_jax.evaluation.evaluator import copy_accuracy, evaluate
from agenticrec_jax.evaluation.rankings import summarize_rankings, targets_of
from agenticrec_jax.metrics.ranking import ndcg_at_k, rank_of_target
from agenticrec_jax.models.qwen3 import Qwen3, Qwen3Config
from agenticrec_jax.paths import Path
from agenticrec_jax.runs.config import RunConfig
from agenticrec_jax.runs.data import RunData
from agenticrec_jax.runs.evaluations import policy_rankings
from agenticrec_jax.runs.policy import Policy, load_policy, save_policy
from agenticrec_jax.runs.pretraining import pretrain, skill_sources
from agenticrec_jax.runs.pretraining_config import PretrainingConfig
from agenticrec_jax.runs.run import Run
from agenticrec_jax.runtime.phases import phase
from agenticrec_jax.tokenizers.base import Tokenizer, spelling_of
from agenticrec_jax.tokenizers.compact import CompactTokenizer, train_tokenizer
from agenticrec_jax.tools.base import AsOfView, Toolbox
from agenticrec_jax.training.decisions import decision_tokens
from agenticrec_jax.training.judge import Judge
from agenticrec_jax.types import SAMPLED

JSON_SYMBOLS = ('{"name":"', '","arguments":{', "}}", '"item_name":"', '"}', "{", "}", '"', "_")
QUOTES = ("‹", "›")
_WORD = re.compile(r"(?<= )[^\W\d_][\w'&-]{2,}")
# Required of the policy before any reinforcement, which cannot teach it to carry out a decision.
LEAST = {
    "single": {"followed": 0.97},
    "merged": {"first": 0.90, "overlap": 0.95},
    "fused": {"first": 0.90, "overlap": 0.95},
}
MOST_INVALID = 0.01
LEAST_ENTROPY = 1.0  # in nats, of a trajectory's decisions: reinforcement needs a choice


def make_tiny_policy(
    config: RunConfig,
    workdir: str | os.PathLike,
    output: str | os.PathLike,
    start: str | os.PathLike | None = None,
) -> dict:
    """Makes a policy directory for the config's log; returns the gate's report.

    Args:
      config: of the run; ``config.pretraining`` has the architecture and the lessons.
      workdir: of data, artifacts and checkpoints; the pretraining resumes from there.
      output: policy directory to write.
      start: policy directory that has been taught the lessons, of which only the review is left;
        None for random weights and a tokenizer of the log's own.

    Raises:
      InputError: the policy misses a bar of `gate_failures`, or there is no review to teach to
        ``start``.
    """
    settings = config.pretraining
    if start is not None:
        expected = "a lesson for the policy of --start"
        expect(bool(settings.review), "config.pretraining.review", settings.review, expected)
        settings = dataclasses.replace(settings, lessons=())
    run = Run(config, workdir)
    with phase("data and tools"):
        artifacts = run.artifacts_a
    toolbox = run.toolbox(artifacts)
    if start is None:
        tokenizer = fit_tokenizer(run.data, toolbox, artifacts.fit_range, settings)
        graphdef, params = nnx.split(random_policy(settings, tokenizer.vocab_size, config.seed))
        policy = Policy(graphdef, params, tokenizer, weights_hash="")
    else:
        policy = _in_dtype(load_policy(config.policy, start), jnp.float32)
    prompts = CompactPrompts(policy.tokenizer, run.data.log.items, config.policy.title_tokens)
    agent = Agent(run.data.log, toolbox, artifacts, prompts)
    with phase("judge"):
        sources = skill_sources(agent, run.data, config)
    with phase("pretraining"):
        trained = pretrain(policy, sources, settings, run.workdir, config.seed)
    save_policy(_in_dtype(trained, jnp.bfloat16), output)
    with phase("gate"):
        report = gate(Run(config, workdir, policy_directory=output))
        report |= judge_rows(sources["reading"].judge, run.data.examples["valid"])
    record = {"made_by": "python -m experiments.make_policy", "gate": report}
    if start is not None:
        record["start"] = policy.weights_hash
    record["config"] = dataclasses.asdict(config)
    (Path(output) / "made.json").write_text(strict_json.dumps(record, indent=1) + "\n")
    print(strict_json.dumps(report, indent=1))
    if failures := gate_failures(report):
        raise InputError(f"{output}: {'; '.join(failures)}")
    return report


def gate_failures(report: dict) -> list[str]:
    """Returns a clause on each bar that a gate's report misses."""
    failures = []
    for skill, bars in LEAST.items():
        for name, least in bars.items():
            share = report[skill][name]
            if share < least:
                failures.append(f"{skill}.{name}: found {share:.3f}, expected at least {least}")
        if report[skill]["invalid"] > MOST_INVALID:
            invalid = report[skill]["invalid"]
            failures.append(
                f"{skill}.invalid: found {invalid:.3f}, expected at most {MOST_INVALID}"
            )
    if report["decision_entropy"] < LEAST_ENTROPY:
        entropy = report["decision_entropy"]
        failures.append(f"decision_entropy: found {entropy:.2f}, expected at least {LEAST_ENTROPY}")
    return failures


def gate(run: Run, count: int = 1600) -> dict:
    """Measures the skills of the run's policy before any reinforcement, on valid examples.

    Args:
      run: of the saved policy.
      count: valid examples, evenly spread over time.

    Returns:
      ``single``: how well greedy lists follow one order; ``merged`` and ``fused``: the same for
      decisions that concatenate two to four orders, or weigh them; ``decision_entropy``: see
      `decision_entropy`; ``greedy`` and ``no_tools``: the policy's rows of the results table, with
      its tools and without; ``demonstrator_ndcg@10``: of random plans over the tools alone.
    """
    agent, params = run.evaluation_agent, run.policy.params
    examples = evenly_spread(run.data.examples["valid"], count)
    rng = np.random.default_rng(run.config.seed)
    # No draft of the policy's own, which is good: what counts is that it follows the thought.
    drafts = [
        tuple((rng.permutation(len(example.candidates))[: protocol.RANKED] + 1).tolist())
        for example in examples
    ]
    script = script_of(agent.toolbox.names)
    labels = (*script.labels, scripted.DRAFT)
    single = [scripted.Plan(script.tools_with((label,)), (label,)) for label in labels[1:]]
    merged = [
        scripted.Plan(script.tools_with(priority), priority)
        for size in (2, 3, 4)
        for priority in itertools.permutations(labels, size)
    ]
    merged = [merged[i] for i in rng.permutation(len(merged))]
    weights = [tuple(rng.integers(1, scripted.MAX_WEIGHT + 1, len(p.priority))) for p in merged]
    fused = [dataclasses.replace(p, weights=w) for p, w in zip(merged, weights, strict=True)]
    skills = {
        name: dataclasses.asdict(copy_accuracy(agent, run.engine, params, examples, plans, drafts))
        for name, plans in {"single": single, "merged": merged, "fused": fused}.items()
    }
    evidence = scripted_rows.gather_evidence(run.data.log, agent.toolbox, run.artifacts_b, examples)
    random_ranks = [
        scripted_rows.plan_ranks(
            scripted.draw_plan(rng, agent.toolbox.names, fused=0.5), [orders], [example]
        )
        for orders, example in zip(evidence, examples, strict=True)
        for _ in range(20)
    ]
    without = dataclasses.replace(agent, use_tools=False)
    log = run.data.log
    rows = {}
    for name, some in {"greedy": agent, "no_tools": without}.items():
        trajectories = evaluate(some, run.engine, params, examples, name=name)
        rankings = policy_rankings(name, trajectories, examples=examples, log=log, seed=None)
        rows[name] = {"name": name, **summarize_rankings(rankings, targets_of(examples, log))}
    return skills | {
        "decision_entropy": decision_entropy(
            evaluate(agent, run.engine, params, examples, temperature=1.0, name="sampled"),
            run.policy.tokenizer,
        ),
        **rows,
        "demonstrator_ndcg@10": ndcg_at_k(np.concatenate(random_ranks), 10),
    }


def judge_rows(judge: Judge, examples: Sequence[RankingExample]) -> dict[str, float]:
    """Returns the NDCG@10 of the judge's own order, and of that by its features alone."""
    plain = dataclasses.replace(judge, affinity=None)
    targets = np.array([example.target_number - 1 for example in examples])
    return {
        f"{name}_ndcg@10": ndcg_at_k(
            rank_of_target(np.stack([judge.scores(example) for example in examples]), targets), 10
        )
        for name, judge in {"judge": judge, "judge_by_features": plain}.items()
    }


def decision_entropy(trajectories: Sequence[Trajectory], tokenizer: Tokenizer) -> float:
    """Returns the mean entropy of a trajectory's decisions, in nats, estimated from samples.

    It is the mean of the negative log-prob of the decision tokens (`training.decisions`) and of the
    first number of the answer: which tools, which orders and weights, which candidate first.

    Args:
      trajectories: sampled at temperature 1.
      tokenizer: the policy's, in which a number of a list is one id.
    """
    spelling = spelling_of(tokenizer)
    total = 0.0
    for trajectory in trajectories:
        ids = np.asarray(trajectory.ids)
        sampled = np.asarray(trajectory.origin) == SAMPLED
        decides = decision_tokens(ids, sampled, spelling)
        opened = np.flatnonzero(ids == tokenizer.marker("\\boxed{["))
        if len(opened) and opened[-1] + 1 < len(ids):
            decides[opened[-1] + 1] = True
        total -= float(np.asarray(trajectory.logprobs)[decides].sum())
    return total / len(trajectories)


def fit_tokenizer(
    data: RunData, toolbox: Toolbox, fit_range: FitRange, settings: PretrainingConfig
) -> CompactTokenizer:
    """Returns a tokenizer fitted on titles inside the fit range and on the script's words.

    Frequent words of titles and the script's phrases are one piece each: a prompt shows few pieces
    of a title, and a policy that writes few pieces is fast.
    """
    titles = list(_titles(data.log, fit_range))
    words = _frequent_words(titles, count=2 * settings.vocab_size // 3)
    script = script_of(toolbox.names)
    labels = [f"{label}:" for label in (*script.labels, scripted.DRAFT)]
    phrases = [*labels, *script.phrases, *COMPACT_PHRASES]
    symbols = [*toolbox.names, *JSON_SYMBOLS, *QUOTES, *phrases, *words]
    lines = [*titles, *_demonstrations(data, toolbox)]
    return train_tokenizer(lines, settings.vocab_size, list(dict.fromkeys(symbols)))


def _frequent_words(titles: list[str], count: int, least: int = 5) -> list[str]:
    """Returns the most frequent words of titles, each with a blank before it."""
    counts = Counter(word for title in titles for word in set(_WORD.findall(title.casefold())))
    return [f" {word}" for word, n in counts.most_common(count) if n >= least]


def _titles(log: InteractionLog, fit_range: FitRange) -> Iterator[str]:
    """Yields the title and brand of every event's item."""
    for item in log.item[log.before(fit_range.end_time)].tolist():
        yield f" {log.items.title[item]}"
        yield f" {log.items.brand[item] or 'no brand'}"


def _demonstrations(data: RunData, toolbox: Toolbox, count: int = 600) -> Iterator[str]:
    rng = np.random.default_rng(0)
    for example in data.examples["policy"][:count]:
        plan = scripted.draw_plan(rng, toolbox.names, fused=0.5)
        for _, text in scripted.demonstrate(plan, AsOfView(data.log, example), toolbox).turns:
            yield from text.replace(">", "<").split("<")


def random_policy(config: PretrainingConfig, vocab_size: int, seed: int = 0) -> Qwen3:
    """Returns a small random Qwen3 that is quick to learn.

    Matrices are scaled by their fan-in (LeCun et al., 1998), those that write to the residual
    stream are small, embeddings are large, and so are the norms of queries and keys: attention can
    then point at single tokens from the start. The log of trials is in decision 0030.
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
        (path, leaf.replace(_rescaled(path, leaf[...]))) for path, leaf in nnx.to_flat_state(params)
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


def _rescaled(path: tuple, value: jax.Array) -> jax.Array:
    if path == ("embedding",):
        return value / jnp.std(value) * 0.5
    if path[-1] == "kernel":
        fan_in = value.size // value.shape[-1] if path[-2] == "o" else value.shape[0]
        factor = 0.2 if path[-2] in ("o", "down") else 1.0
        return value / jnp.std(value) * fan_in**-0.5 * factor
    if path[-2] in ("q_norm", "k_norm"):
        return value * 1.5
    return value * 0.05 if path == ("norm", "scale") else value


def _in_dtype(policy: Policy, dtype: jax.typing.DTypeLike) -> Policy:
    """Returns the policy with its weights in ``dtype``; bfloat16 is stored in half the bytes."""
    model = nnx.merge(policy.graphdef, policy.params)
    config = dataclasses.replace(model.config, param_dtype=jnp.dtype(dtype).name)
    graphdef, _ = nnx.split(Qwen3(config, rngs=nnx.Rngs(0)))
    params = jax.tree.map(lambda x: x.astype(dtype), policy.params)
    return dataclasses.replace(policy, graphdef=graphdef, params=params)
