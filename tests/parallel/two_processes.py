"""One of two processes of four devices; started by test_multihost, prints a JSON line at the end.

Usage: two_processes.py SCRATCH_DIRECTORY, with the process named in the environment.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from agenticrec_jax.errors import InputError
from agenticrec_jax.models.io.huggingface import load_policy, save_policy
from agenticrec_jax.models.qwen3 import segment_positions
from agenticrec_jax.parallel import multihost
from agenticrec_jax.parallel.mesh import make_mesh, shard_params
from agenticrec_jax.testing.models import tiny_qwen3


def message(function, *args):
    """Returns the sentence of the error that a call ends with."""
    try:
        function(*args)
    except InputError as error:
        return str(error)
    return "no error"


def no_such_file():
    if not multihost.is_main():
        raise AssertionError("only process 0 may check")
    raise InputError("candidates.json is missing")


def mean_nll(graphdef, params, ids):
    """Loss over a batch that is spread over both processes."""

    def loss(params, ids):
        model = nnx.merge(graphdef, params)
        hidden, _ = model.forward(ids, segment_positions(ids), jnp.ones(ids.shape, bool))
        scores = jax.nn.log_softmax(model.logits(hidden)[:, :-1])
        return -jnp.take_along_axis(scores, ids[:, 1:, None], 2).mean()

    return jax.jit(jax.value_and_grad(loss))(params, ids)


def main(scratch):
    multihost.initialize()
    rank = jax.process_index()
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    rows = multihost.process_rows(8, mesh)
    ids = np.random.default_rng(0).integers(0, 96, (8, 10))
    batch = multihost.global_batch({"ids": ids[rows], "rank": np.full(4, rank)}, mesh)

    graphdef, params = nnx.split(tiny_qwen3())
    params = shard_params(params, mesh)
    loss, grads = mean_nll(graphdef, params, batch["ids"])
    save_policy(nnx.merge(graphdef, params), scratch / "saved")
    scanned = load_policy(scratch / "saved", mesh=mesh, scan_layers=True)
    save_policy(scanned, scratch / "again")
    loaded = load_policy(scratch / "again", mesh=mesh)
    return {
        "processes": jax.process_count(),
        "devices": jax.device_count(),
        "main": multihost.is_main(),
        "rows": [rows.start, rows.stop],
        "mean_rank": float(jax.jit(jnp.mean)(batch["rank"].astype(jnp.float32))),
        "batch": multihost.to_host(batch["ids"]).tolist(),
        "local_rows": multihost.local_rows(batch["ids"]).tolist(),
        "loss": float(loss),
        "grad": multihost.to_host(grads["layers"][1]["mlp"]["up"]["kernel"].get_value()).tolist(),
        "reloaded_loss": float(mean_nll(graphdef, nnx.state(loaded), batch["ids"])[0]),
        "gathered": multihost.allgather({"rank": rank, "text": "é" * (5 * rank + 1)}),
        "same": message(multihost.check_same, "abc", "candidate hash"),
        "different": message(multihost.check_same, f"hash{rank}", "candidate hash"),
        "main_check": message(multihost.check_on_main, no_such_file),
    }


if __name__ == "__main__":
    result = main(Path(sys.argv[1]))
    print(json.dumps(result))
