"""Evaluates a policy directory on frozen candidate lists.

    python -m experiments.evaluate --policy=DIR --workdir=DIR [--split=test|valid]

``--observations=blank`` or ``permute`` takes the evidence out of the tools' observations, ``none``
offers no tool: three ways to see whether the policy uses what it reads. Several, separated by
commas, are several rows: ``--observations=none,as_they_are`` of a directory that was not trained
are the baselines of a frozen language model, direct answers and the same agent with its tools.
``--observations=as_they_are,without_each`` takes each tool away in turn, a row for each tool.
``--top_k``, ``--top_p`` and ``--min_p`` filter the tokens that are drawn at a ``--temperature``
above 0, and with ``--constrained`` an answer that is begun can only become a valid one. For each
row the workdir gets ``evaluation_<row>_<split>.json``, the rankings (``.parquet``) and the
trajectories (``.jsonl``); ``verify`` recomputes the row from them.
"""

import re
from collections.abc import Sequence

from absl import flags

from agenticrec_jax.cli import app
from agenticrec_jax.cli.configs import define_config
from agenticrec_jax.data.examples import evenly_spread
from agenticrec_jax.errors import InputError
from agenticrec_jax.evaluation.report import print_table
from agenticrec_jax.generation.sampling import Filters
from agenticrec_jax.runs import Run, run_config
from agenticrec_jax.runs.evaluations import (
    OBSERVATIONS,
    Sampling,
    evaluate_agent,
    row_name,
    without,
)
from agenticrec_jax.runtime.phases import phase

_CONFIG = define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
_POLICY = flags.DEFINE_string("policy", None, "Policy directory; the config's if not given.")
_SPLIT = flags.DEFINE_enum("split", "test", ("valid", "test"), "Which examples to rank.")
_EXAMPLES = flags.DEFINE_integer("examples", 0, "How many; 0 for all.", lower_bound=0)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 is greedy.", lower_bound=0.0)
_TOP_K = flags.DEFINE_integer("top_k", 0, "Draw from so many most likely tokens; 0 for all.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Draw from the most likely tokens of this mass.")
_MIN_P = flags.DEFINE_float("min_p", 0.0, "Least share of the most likely token's probability.")
_CONSTRAINED = flags.DEFINE_bool("constrained", False, "Let answers be valid rankings only.")
_EACH = "without_each"
_KINDS = (*OBSERVATIONS, _EACH)
_OBSERVATIONS = flags.DEFINE_list(
    "observations",
    ["as_they_are"],
    f"What the policy can read, a row each: some of {', '.join(_KINDS)}.",
)
_NAME = flags.DEFINE_string("name", "policy", "Name of rows and files.")


def main(argv: Sequence[str]) -> None:
    del argv
    config = run_config(_CONFIG.value)
    split = _SPLIT.value
    filters = Filters(_TOP_K.value, _TOP_P.value, _MIN_P.value)
    observations = app.some_of("observations", _OBSERVATIONS.value, _KINDS)
    if not re.fullmatch(r"[\w.-]+", _NAME.value):
        raise InputError(
            f"flag --name: found {_NAME.value!r}, expected letters, digits, '_', '.' or '-'"
        )
    run = Run(config, _WORKDIR.value, policy_directory=_POLICY.value)
    _ = run.policy
    app.print_devices()
    with phase("data and tools"):
        _ = run.data, run.artifacts_b
    examples = evenly_spread(run.data.examples[split], _EXAMPLES.value)
    row = {
        "split": split,
        "seed": config.seed,
        "engine": run.make_engine(constrained=_CONSTRAINED.value),
        "sampling": Sampling(temperature=_TEMPERATURE.value, filters=filters, seed=config.seed),
        "constrained": _CONSTRAINED.value,
    }
    rows = []
    if _EACH in observations:
        tools = run.toolbox(run.artifacts_b).names
        each = observations.index(_EACH)
        observations[each : each + 1] = map(without, tools)
    for kind in observations:
        name = row_name(_NAME.value, kind)
        results = evaluate_agent(run, examples, name=name, observations=kind, **row)
        rows += results["rows"]
    print_table({"rows": rows, "protocol": results["protocol"]})


if __name__ == "__main__":
    app.run(main)
