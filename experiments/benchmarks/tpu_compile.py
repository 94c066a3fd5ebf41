"""Compiles a whole run for TPU slices or GPUs, without one, and reports each program's memory.

``python -m experiments.benchmarks.tpu_compile --json=FILE [--topology=v5e:4x4] [--model=Qwen3-4B]``
compiles prefill, join, decode, splice and the learner's step of Qwen3-0.6B, 1.7B, 4B and 8B for
four slices, as far as a dry run does. ``--code`` also generates the machine code, which takes most
of the time and changes figures only by its own bytes. ``--slices=2`` compiles for two of each
slice, each with a copy of the parameters. ``--topology=h100:8,h200:1`` compiles for GPUs, into a
file of their own; it needs JAX's CUDA plugin and cuDNN, but no GPU.

Settings are those of the presets of ``experiments.configs.qwen3``: 64 prompts of up to 2,048 tokens
in groups of 8, up to 6,144 generated tokens, bfloat16. The programs are those of a run (see
``agenticrec_jax.runs.dry_run``); no parameter is allocated. Rows of FILE for other models and
slices remain, if it was written with the same versions.

``ours`` is the memory of a chip while a program runs, all other resident arrays included, and
``bound`` the memory that the compiler may use. The estimates of work are no speeds, and ``seconds``
are a roofline. ``settings`` are the choices that make a row fit; a row that does not fit is marked.
"""

import dataclasses
import json
import pathlib
from importlib import metadata

import jax
from absl import flags

from agenticrec_jax.cli import app
from agenticrec_jax.dryrun.topology import slice_devices
from agenticrec_jax.errors import expect
from agenticrec_jax.runs import RunConfig, dry_run, run_config
from agenticrec_jax.runtime.phases import phase
from experiments.benchmarks.figures import publish
from experiments.benchmarks.shapes import QWEN3
from experiments.configs import qwen3

SLICES = {"v5e:4x4": "v5e_16", "v5e:8x8": "v5e_64", "v5p:2x2x4": "v5p_16", "v6e:4x4": "v6e_16"}
GPUS = {"h100:8": "h100_8", "h200:1": "h200_1"}
PRESETS = SLICES | GPUS
# Packages whose versions decide the figures.
COMPILERS = {"tpu": ("libtpu",), "gpu": ("jax-cuda12-plugin", "nvidia-cudnn-cu12")}
MODELS = ("Qwen3-0.6B", "Qwen3-1.7B", "Qwen3-4B", "Qwen3-8B")


def settings(model: str, topology: str, slices: int = 1) -> RunConfig:
    """Returns the configuration of a row: the preset of the model and the slice."""
    config = qwen3.get_config(f"{PRESETS[topology]}_{model.removeprefix('Qwen3-')}")
    config.mesh.slices = slices
    return run_config(config)


def place(topology: str, slices: int) -> str:
    """Returns the name of one slice or several in rows."""
    return topology if slices == 1 else f"{slices} x {topology}"


def measure(model: str, topology: str, slices: int) -> list[dict]:
    """Returns the rows of a model on a slice, or on several."""
    config = settings(model, topology, slices)
    shape = dataclasses.replace(QWEN3[model], **config.policy.computation())
    label = f"{model} on {place(topology, slices)}"
    with phase(label):
        measured = dry_run.rows if _CODE.value else dry_run.planned
        return measured(config, "rta", shape, topology, label)


def earlier_rows(
    path: str, models: list[str], slices: list[str], compiler: tuple[str, ...]
) -> list[dict]:
    """Returns the rows of ``path`` for other models and slices, of the same versions.

    Args:
      path: of a file of figures, which need not exist.
      models: whose rows are computed now.
      slices: for which they are.
      compiler: packages that have to be of the same version, besides JAX.
    """
    if not path or not pathlib.Path(path).exists():
        return []
    earlier = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    versions = {"jax": jax.__version__} | {name: metadata.version(name) for name in compiler}
    if {name: earlier["machine"].get(name) for name in versions} != versions:
        return []
    new = {f"{model} on {topology}" for model in models for topology in slices}
    return [row for row in earlier["rows"] if row["name"].rsplit(": ", 1)[0] not in new]


def compiler_of(slices: list[str]) -> tuple[str, ...]:
    """Returns the packages that compile for slices or for GPUs; InputError for both at once."""
    platforms = {device.platform for name in slices for device in slice_devices(name)}
    expect(len(platforms) == 1, "flag --topology", ",".join(slices), "either slices or GPUs")
    return COMPILERS[platforms.pop()]


def main(argv) -> None:
    del argv
    models = app.some_of("model", _MODEL.value, MODELS)
    slices = app.some_of("topology", _TOPOLOGY.value, PRESETS)
    compiler = compiler_of(slices)  # topologies must exist before JAX starts another backend
    places = [place(topology, _SLICES.value) for topology in slices]
    rows = earlier_rows(_JSON.value, models, places, compiler)
    for topology in slices:
        for model in models:
            rows += measure(model, topology, _SLICES.value)
            publish(rows.copy, _JSON.value, dry_run.show, compiler)


if __name__ == "__main__":
    _JSON = flags.DEFINE_string("json", "", "File to write the figures to; empty for none.")
    _MODEL = flags.DEFINE_list("model", list(MODELS), "Models to compile.")
    _TOPOLOGY = flags.DEFINE_list("topology", list(SLICES), "Slices or GPUs to compile for.")
    _SLICES = flags.DEFINE_integer("slices", 1, "Slices of each.", lower_bound=1)
    _CODE = flags.DEFINE_bool("code", False, "Generate the machine code too.")
    app.run(main)
