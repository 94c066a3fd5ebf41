"""Shows devices, versions, memory, the compilation cache, and extras that are missing.

    python -m experiments.doctor [--nodevices]

Each missing extra stands with the command that installs it. If JAX finds no device the program says
so last and ends with exit status 2.
"""

from collections.abc import Sequence

from absl import flags

from agenticrec_jax.cli import app
from agenticrec_jax.cli.doctor import report
from agenticrec_jax.errors import InputError

_DEVICES = flags.DEFINE_bool("devices", True, "Start JAX; off while another program has the TPU.")


def main(argv: Sequence[str]) -> None:
    del argv
    try:
        for line in report(flags.FLAGS.compilation_cache, devices=_DEVICES.value):
            print(line, flush=True)
    except RuntimeError as error:
        sentence = " ".join(str(error).split())
        raise InputError(
            f"devices: found none ({sentence}), expected one that JAX can use"
        ) from error


if __name__ == "__main__":
    app.run(main)
