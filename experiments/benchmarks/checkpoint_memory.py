"""Measures the host memory of loading and saving a checkpoint, over the model's size.

``python -m experiments.benchmarks.checkpoint_memory --json=FILE`` writes a random float32 policy
of Qwen3-0.6B's shape as about ``FILES`` files with an index. It loads and saves the policy, each
time in a process of its own:

- as the package does, tensor by tensor: on one device, and on ``DEVICES`` simulated ones with a
  shard of every kernel each;
- all at once, the peer: every tensor is read before the first is placed, or gathered before the
  first is written.

A figure is the peak of resident memory less the memory resident before, over the bytes of the
weights. On a CPU the loaded model is in host memory, so loading takes at least 1.0.
"""

import ctypes
import gc
import json
import pathlib
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx
from safetensors.numpy import load_file, save_file

from agenticrec_jax import strict_json
from agenticrec_jax.cli import app
from agenticrec_jax.errors import InputError
from agenticrec_jax.models.io.huggingface import load_policy, save_policy
from agenticrec_jax.models.qwen3 import Qwen3, Qwen3Config
from agenticrec_jax.parallel.mesh import make_mesh
from experiments.benchmarks.figures import figure, publish
from experiments.benchmarks.shapes import QWEN3

WORKS = ("load", "load_sharded", "load_at_once", "save", "save_sharded", "save_at_once")
FILES = 4
DEVICES = 8


def random_policy(config: Qwen3Config) -> Qwen3:
    """Returns a policy of uniform random weights, drawn one tensor at a time."""
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    return nnx.merge(
        graphdef, jax.tree.map(lambda x: jnp.asarray(rng.random(x.shape, np.float32)), abstract)
    )


def work(name: str, directory: pathlib.Path) -> dict[str, int]:
    """Runs one of ``WORKS`` on a policy directory; returns the bytes of its ``peak``."""
    mesh = None
    if name.endswith("sharded"):
        jax.config.update("jax_num_cpu_devices", DEVICES)
        mesh = make_mesh(fsdp=DEVICES // 2, tensor=2)
    if name in ("load", "load_sharded"):
        return _peak(lambda: load_policy(directory, mesh=mesh))
    if name == "load_at_once":
        files = sorted(directory.glob("*.safetensors"))
        return _peak(lambda: jax.tree.map(jnp.array, [load_file(file) for file in files]))
    model = load_policy(directory, mesh=mesh)
    target = directory / "again"
    if name == "save_at_once":
        return _peak(lambda: save_file(_copies(model), target / "model.safetensors"))
    return _peak(lambda: save_policy(model, target))


def _copies(model: Qwen3) -> dict[str, np.ndarray]:
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {".".join(map(str, path)): np.array(v.get_value()) for path, v in flat}


def _peak(run) -> dict[str, int]:
    """Measures the peak of resident memory that Linux records."""
    # Freed memory returns to the system first, or the work would reuse it without a new peak.
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets the recorded peak
    before = _status("VmRSS")
    result = run()
    jax.block_until_ready(nnx.state(result) if isinstance(result, nnx.Module) else result)
    return {"peak": _status("VmHWM") - before}


def _status(field: str) -> int:
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise InputError(f"/proc/self/status: found no {field}, expected Linux")


def measure(config: Qwen3Config = QWEN3["Qwen3-0.6B"]) -> list[dict]:
    """Returns the rows: peaks over the size of the weights, ours and all at once."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = pathlib.Path(scratch)
        (directory / "again").mkdir()
        model = random_policy(config)
        size = sum(x.nbytes for x in jax.tree.leaves(nnx.state(model)))
        save_policy(model, directory, max_file_bytes=size // (FILES - 1))
        del model
        files = len(list(directory.glob("*.safetensors")))
        peaks = {name: _in_process(name, directory) / size for name in WORKS}
    rows = [figure("weights", "MB", size / 1e6), figure("files", "", files)]
    for name, bound in (("load", 2.0), ("save", 1.0)):
        for key, label in ((name, name), (f"{name}_sharded", f"{name}, {DEVICES} devices")):
            rows.append(
                figure(
                    f"{label}: peak over weights",
                    "x",
                    peaks[key],
                    peaks[f"{name}_at_once"],
                    "all tensors at once",
                    bound,
                )
            )
    return rows


def _in_process(name: str, directory: pathlib.Path) -> float:
    command = [sys.executable, "-m", "experiments.benchmarks.checkpoint_memory"]
    command += [f"--work={name}", f"--directory={directory}", "--compilation_cache="]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(finished.stdout.splitlines()[-1])["peak"]


def main(argv) -> None:
    del argv
    if _WORK.value:
        print(strict_json.dumps(work(_WORK.value, pathlib.Path(_DIRECTORY.value))))
        return
    publish(measure, _JSON.value)


if __name__ == "__main__":
    _JSON = flags.DEFINE_string("json", "", "File to write the figures to; empty for none.")
    _WORK = flags.DEFINE_enum("work", None, WORKS, "Measure one work in this process.")
    _DIRECTORY = flags.DEFINE_string("directory", "", "Policy directory of --work.")
    app.run(main)
