"""Compiles the engine with pages for TPU slices, and compares its memory with columns of slots.

``python -m experiments.benchmarks.tpu_pages --json=FILE [--topology=v5e:4x4] [--model=Qwen3-4B]``
compiles prefill, join, decode and splice of the runs of ``tpu_compile``, whose committed figures
are the peer, as far as a dry run does. Slots are ``SLOTS`` times as many, and a slot has pages for
a row of ``MEAN`` tokens in the mean, where one with columns has them for the longest. ``settings``
say how many slots and pages these are.

The rows of a slice are the cache of a chip, the live tokens of a host, the waves in which 512
rollouts run, and the temporaries of each program as a share of the cache. ``learner`` is the memory
of the largest program of the learner, which must fit beside the cache: a committed figure, in which
the cache is exchanged.
"""

import dataclasses
import functools
import json
import pathlib
import tempfile

from absl import flags
from flax import nnx

from agenticrec_jax.cli import app
from agenticrec_jax.dryrun.topology import host_devices, plan_for, slice_devices
from agenticrec_jax.generation.config import EngineConfig
from agenticrec_jax.generation.engine import Engine
from agenticrec_jax.runs import RunConfig, dry_run, dry_run_programs
from agenticrec_jax.runtime.phases import phase
from experiments.benchmarks import tpu_compile
from experiments.benchmarks.figures import figure, publish, show
from experiments.benchmarks.shapes import QWEN3

MEAN = 3072  # tokens of a trajectory
PAGE = 64
SLOTS = 6
ROLLOUTS = 512
PROGRAMS = ("prefill", "join", "decode", "splice")
COMMITTED = pathlib.Path(tpu_compile.__file__).parent / "results" / "tpu_compile.json"


def paged(config: RunConfig) -> EngineConfig:
    """Returns the engine's sizes with pages in place of columns."""
    slots = SLOTS * config.engine.slots
    return dataclasses.replace(
        config.engine, slots=slots, page_tokens=PAGE, pages=slots * MEAN // PAGE
    )


def temporaries(model: str, topology: str) -> dict[str, float]:
    """Returns bytes of a chip: the ``cache``, that with ``columns``, and each program's own."""
    config = tpu_compile.settings(model, topology)
    shape = dataclasses.replace(QWEN3[model], **config.policy.computation())
    _, host = dry_run_programs.meshes(config, topology)
    graphdef, params = nnx.split(nnx.eval_shape(lambda: dry_run_programs.model_of(config, shape)))
    engines = [
        Engine(graphdef, sizes, 1, (2,), 0, mesh=host) for sizes in (config.engine, paged(config))
    ]
    columns, cache = (dry_run_programs.chip_bytes(e.abstract_state(params).cache) for e in engines)
    result = {"cache": cache, "columns": columns}
    lowered = engines[1].lower(params, config.rta.members)
    with tempfile.TemporaryDirectory() as dumps:
        for name in PROGRAMS:
            memory, _ = plan_for(host.devices.flat[0], lowered[name], dumps)
            assert memory.aliased > cache, f"{name} copies the cache"
            result[name] = memory.temporaries
    return result


def measure(model: str, topology: str) -> list[dict]:
    """Returns the rows of a model on a slice."""
    label = f"{model} on {topology}"
    with phase(label):
        sizes = dry_run.run_in_process(functools.partial(temporaries, model, topology))
    rows = json.loads(COMMITTED.read_text(encoding="utf-8"))["rows"]
    before = {row["name"].rsplit(": ", 1)[1]: row for row in rows if row["name"].startswith(label)}
    config = tpu_compile.settings(model, topology)
    hosts = len(slice_devices(topology)) // len(host_devices(topology))
    slots = config.engine.slots
    waves = [-(-ROLLOUTS // (hosts * n)) for n in (SLOTS * slots, slots)]
    other = sizes["cache"] - sizes["columns"]
    learner = max(row["ours"] for name, row in before.items() if name not in PROGRAMS)
    gib = dry_run.GIB
    result = [
        figure(f"{label}: cache", "GiB a chip", sizes["cache"] / gib, sizes["columns"] / gib),
        figure(f"{label}: live tokens", "a host", SLOTS * slots * MEAN, slots * MEAN),
        figure(f"{label}: {ROLLOUTS} rollouts", "waves", waves[0], waves[1]),
        figure(
            f"{label}: learner", "GiB a chip", learner + other / gib, learner, bound=bound(before)
        ),
    ]
    for name in PROGRAMS:
        peer = before[name]["bytes"]["temporaries"] / sizes["columns"]
        share = sizes[name] / sizes["cache"]
        row = figure(f"{label}: temporaries of {name}", "of the cache", share, peer, bound=0.3)
        result.append(row)
    return [row | {"peer_name": "columns", "settings": described(config)} for row in result]


def bound(before: dict[str, dict]) -> float:
    """Returns the memory of a chip that a program can have, in GiB."""
    return before["decode"]["bound"]


def described(config: RunConfig) -> dict[str, int]:
    """Returns the sizes of the engine with pages."""
    engine = paged(config)
    return {"slots": engine.slots, "pages": engine.pages, "page_tokens": engine.page_tokens}


def main(argv) -> None:
    del argv
    models = app.some_of("model", _MODEL.value, tpu_compile.MODELS)
    slices = app.some_of("topology", _TOPOLOGY.value, tpu_compile.SLICES)
    slice_devices(slices[0])  # the topology must exist before JAX starts another backend
    rows = []
    for topology in slices:
        for model in models:
            rows += measure(model, topology)
            publish(rows.copy, _JSON.value, show, ("libtpu",))


if __name__ == "__main__":
    _JSON = flags.DEFINE_string("json", "", "File to write the figures to; empty for none.")
    _MODEL = flags.DEFINE_list("model", list(tpu_compile.MODELS), "Models to compile.")
    _TOPOLOGY = flags.DEFINE_list("topology", list(tpu_compile.SLICES), "Slices to compile for.")
    app.run(main)
