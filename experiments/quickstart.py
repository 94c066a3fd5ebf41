"""Runs the whole method on a log: artifacts, both stages, evaluation, report.

    python -m experiments.quickstart --workdir=DIR [--preset=quick|full|smoke] [--seeds=0,1,2]

The log is the embedded one, or with ``--config.dataset.prepared=DIR`` what ``prepare_data`` made of
yours. The workdir gets ``results.json``, ``trajectories.jsonl``, ``metrics.jsonl`` of each seed and
``report.html``. A run that was stopped resumes from its newest checkpoint. ``--preset=PRESET`` is
``--config=office:PRESET``, and ``--config.evaluation.ablations`` adds a row for each tool that is
taken away from the trained policy.
"""

from collections.abc import Sequence

from absl import flags

from agenticrec_jax.cli import app
from agenticrec_jax.cli.configs import define_config
from agenticrec_jax.runs import run_config
from agenticrec_jax.runs.experiment import run_experiment

_CONFIG = define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
_PRESET = flags.DEFINE_enum("preset", "quick", ("quick", "full", "smoke"), "Size of the run.")
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds of training, separated by commas.")


def main(argv: Sequence[str]) -> None:
    del argv
    values = _CONFIG.value
    if _PRESET.present:
        values = flags.FLAGS[_CONFIG.name].with_preset(_PRESET)
    config = run_config(values)
    seeds = app.whole_numbers("seeds", _SEEDS.value)
    app.print_devices()
    run_experiment(config, _WORKDIR.value, seeds)


if __name__ == "__main__":
    app.run(main)
