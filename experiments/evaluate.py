"""Judges a policy directory on frozen candidate lists.

    python -m experiments.evaluate --policy=DIR --workdir=DIR [--split=test|valid]

``--observations=blank`` or ``permute`` takes the evidence out of what the tools say, ``none`` takes
the tools away: three ways to see whether the policy uses what it reads. Several, separated by
commas, are several rows: ``--observations=none,as_they_are`` of a directory that was not trained
are the baselines of a frozen language model, direct answers and the same agent with its tools.
``--top_k``, ``--top_p`` and ``--min_p`` filter what is drawn at a ``--temperature`` above 0, and
with ``--constrained`` an answer that is begun can only become a valid one. For each row the workdir
gets ``evaluation_<row>_<split>.json`` and the trajectories (``.jsonl``).
"""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from absl import flags

from agenticrec_jax.agent.interventions import blank, permute
from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.cli import app
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.errors import InputError
from agenticrec_jax.evaluation.evaluator import evaluate, summary_row
from agenticrec_jax.evaluation.report import print_table
from agenticrec_jax.generation.sampling import Filters
from agenticrec_jax.runs import pipeline
from agenticrec_jax.runs import policy as policies
from agenticrec_jax.runtime.phases import phase

OBSERVATIONS = {
    "as_they_are": {},
    "none": {"use_tools": False},
    "blank": {"transform": blank},
    "permute": {"transform": permute},
}
SUFFIXES = {"as_they_are": "", "none": "_no_tools", "blank": "_blanked", "permute": "_permuted"}


def main(argv: Sequence[str]) -> None:
    del argv
    config, split = _CONFIG.value, _SPLIT.value
    filters = Filters(_TOP_K.value, _TOP_P.value, _MIN_P.value)
    kinds = app.some_of("observations", _OBSERVATIONS.value, OBSERVATIONS)
    name = checked_name(_NAME.value)
    directory = _POLICY.value or config.policy.directory
    policy = policies.load(directory, **policies.computed(config))
    with phase("data and tools"):
        world = pipeline.prepare(config, _WORKDIR.value)
        artifacts = pipeline.artifacts_b(world)
    examples = pipeline.chosen(world.examples[split], _EXAMPLES.value)
    engine = pipeline.engine(config, policy, _CONSTRAINED.value)
    protocol = pipeline.protocol(world, split, [config.seed])
    protocol["policy"] = {"directory": directory, "weights": policy.weights_hash}
    drawn = {"temperature": _TEMPERATURE.value, "constrained": _CONSTRAINED.value}
    protocol["sampling"] = drawn | dataclasses.asdict(filters)
    sampling = {"temperature": _TEMPERATURE.value, "seed": config.seed, "filters": filters}
    rows = []
    for kind in kinds:
        options = dict(OBSERVATIONS[kind])
        if kind == "permute":
            options["transform"] = partial(permute, candidates=config.dataset.negatives + 1)
        agent = pipeline.agent(world, artifacts, policy.tokenizer, **options)
        with phase(f"evaluation, observations {kind}"):
            found = evaluate(agent, engine, policy.params, examples, **sampling)
        rows.append(row_of(name + SUFFIXES[kind], found, examples))
        path = world.workdir / f"evaluation_{rows[-1]['name']}_{split}.json"
        write_trajectories(path.with_suffix(".jsonl"), found)
        path.write_text(json.dumps({"rows": rows[-1:], "protocol": protocol}, indent=1) + "\n")
        print(f"row written to {path}, trajectories beside it")
    print_table({"rows": rows, "protocol": protocol})


def row_of(
    name: str, trajectories: Sequence[Trajectory], examples: Sequence[RankingExample]
) -> dict:
    """The table's row, and how often an output was invalid for which reason."""
    reasons = Counter(t.invalid_reason for t in trajectories if not t.valid)
    row = summary_row(name, trajectories, examples)
    return row | {"invalid_reasons": dict(sorted(reasons.items()))}


def checked_name(name: str) -> str:
    """The name, if a file can be called so; else InputError."""
    if not re.fullmatch(r"[\w.-]+", name):
        raise InputError(f"flag --name: found {name!r}, expected letters, digits, '_', '.' or '-'")
    return name


def write_trajectories(path: Path, trajectories: Sequence[Trajectory]) -> None:
    """One JSON line a trajectory; the file appears whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text("".join(f"{t.to_json()}\n" for t in trajectories), encoding="utf-8")
    part.replace(path)


def read_trajectories(path: Path) -> list[Trajectory]:
    """Inverse of ``write_trajectories``."""
    return [Trajectory.from_json(x) for x in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
    _POLICY = flags.DEFINE_string("policy", None, "Policy directory; the config's if not given.")
    _SPLIT = flags.DEFINE_enum("split", "test", ("valid", "test"), "Which samples to rank.")
    _EXAMPLES = flags.DEFINE_integer("examples", 0, "How many; 0 for all.", lower_bound=0)
    _TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 is greedy.", lower_bound=0.0)
    _TOP_K = flags.DEFINE_integer("top_k", 0, "Draw from so many most likely tokens; 0 for all.")
    _TOP_P = flags.DEFINE_float("top_p", 1.0, "Draw from the most likely tokens of this mass.")
    _MIN_P = flags.DEFINE_float("min_p", 0.0, "Least share of the most likely token's probability.")
    _CONSTRAINED = flags.DEFINE_bool("constrained", False, "Let answers be valid rankings only.")
    _OBSERVATIONS = flags.DEFINE_list(
        "observations",
        ["as_they_are"],
        f"What the policy gets to read, a row each: some of {', '.join(OBSERVATIONS)}.",
    )
    _NAME = flags.DEFINE_string("name", "policy", "What rows and files are called.")
    _CONFIG = pipeline.define_config("experiments/configs/office.py")
    app.run(main)
