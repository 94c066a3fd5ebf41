"""Judges a policy directory on frozen candidate lists.

    python -m experiments.evaluate --policy=DIR --workdir=DIR [--split=test|valid]

``--observations=blank`` or ``permute`` takes the evidence out of what the tools say, ``none`` takes
the tools away: three ways to see whether the policy uses what it reads. ``--top_k``, ``--top_p``
and ``--min_p`` filter what is drawn at a ``--temperature`` above 0, and with ``--constrained`` an
answer that is begun can only become a valid one. The workdir gets the row
(``evaluation_<split>_<observations>.json``) and the trajectories (``.jsonl``).
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from agenticrec_jax.agent.interventions import blank, permute
from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.evaluation.evaluator import evaluate, summary_row
from agenticrec_jax.evaluation.report import print_table
from agenticrec_jax.generation.sampling import Filters
from experiments import app, pipeline

OBSERVATIONS = {
    "as_they_are": {},
    "none": {"use_tools": False},
    "blank": {"transform": blank},
    "permute": {"transform": permute},
}


def main(argv: Sequence[str]) -> None:
    del argv
    config = _CONFIG.value
    filters = Filters(_TOP_K.value, _TOP_P.value, _MIN_P.value)
    directory = _POLICY.value or config.policy.directory
    policy = pipeline.load(directory, **pipeline.computed(config))
    with app.phase("data and tools"):
        world = pipeline.prepare(config, _WORKDIR.value)
        artifacts = pipeline.artifacts_b(world)
    examples = pipeline.chosen(world.examples[_SPLIT.value], _EXAMPLES.value)
    options = OBSERVATIONS[_OBSERVATIONS.value]
    agent = pipeline.agent(world, artifacts, policy.tokenizer, **options)
    with app.phase("evaluation"):
        trajectories = evaluate(
            agent,
            pipeline.engine(config, policy, _CONSTRAINED.value),
            policy.params,
            examples,
            temperature=_TEMPERATURE.value,
            seed=config.seed,
            filters=filters,
        )
    row = summary_row(f"policy, observations {_OBSERVATIONS.value}", trajectories, examples)
    results = {"rows": [row], "protocol": pipeline.protocol(world, _SPLIT.value, [config.seed])}
    drawn = {"temperature": _TEMPERATURE.value, "constrained": _CONSTRAINED.value}
    results["sampling"] = drawn | dataclasses.asdict(filters)
    print_table(results)
    path = world.workdir / f"evaluation_{_SPLIT.value}_{_OBSERVATIONS.value}.json"
    write_trajectories(path.with_suffix(".jsonl"), trajectories)
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"row written to {path}, trajectories beside it")


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
    _OBSERVATIONS = flags.DEFINE_enum(
        "observations", "as_they_are", tuple(OBSERVATIONS), "What the policy gets to read."
    )
    _CONFIG = pipeline.define_config("experiments/configs/office.py")
    app.run(main)
