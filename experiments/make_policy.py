"""Makes the embedded tiny policy: tokenizer, random weights, pretraining, gate.

    python -m experiments.make_policy --workdir=DIR --output=tools_data/tiny_policy

It takes about 95 minutes on 2 cores and resumes where it was stopped. The quickstart and the tests
read the committed directory. With ``--start=DIR`` only ``config.pretraining.review`` is taught, to
a policy that has been taught the lessons.
"""

from collections.abc import Sequence

from absl import flags

from agenticrec_jax.cli import app
from agenticrec_jax.cli.configs import define_config
from agenticrec_jax.runs import run_config
from agenticrec_jax.runs.data import make_workdir
from agenticrec_jax.runs.tiny_policy import make_tiny_policy

_CONFIG = define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
_OUTPUT = flags.DEFINE_string("output", "tools_data/tiny_policy", "Policy directory to write.")
_START = flags.DEFINE_string("start", None, "Policy to review; random weights if not set.")


def main(argv: Sequence[str]) -> None:
    del argv
    config = run_config(_CONFIG.value)
    workdir = make_workdir(_WORKDIR.value)
    app.print_devices()
    make_tiny_policy(config, workdir, _OUTPUT.value, _START.value)


if __name__ == "__main__":
    app.run(main)
