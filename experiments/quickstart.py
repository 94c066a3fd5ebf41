"""Runs the whole method on the embedded log: artifacts, both stages, evaluation, report.

    python -m experiments.quickstart --workdir=DIR [--preset=quick|full|smoke] [--seeds=0,1,2]

The workdir gets ``results.json``, ``trajectories.jsonl``, ``metrics.jsonl`` of each seed and
``report.html``. A run that was stopped resumes from its newest checkpoint. The settings are those
of ``--config=office:PRESET``; ``train_policy --help --config=office:PRESET`` lists them.
"""

from collections.abc import Sequence

from absl import flags

from agenticrec_jax.cli import app
from agenticrec_jax.cli.configs import load_config
from agenticrec_jax.runs import run_config
from agenticrec_jax.runs.experiment import run_experiment

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
_PRESET = flags.DEFINE_enum("preset", "quick", ("quick", "full", "smoke"), "Size of the run.")
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds of training, separated by commas.")


def main(argv: Sequence[str]) -> None:
    del argv
    config = run_config(load_config(f"office:{_PRESET.value}"))
    seeds = app.whole_numbers("seeds", _SEEDS.value)
    app.print_devices()
    run_experiment(config, _WORKDIR.value, seeds)


if __name__ == "__main__":
    app.run(main)
