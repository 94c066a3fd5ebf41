"""One of several processes of a cluster; it waits for SIGTERM. `test_started` starts it.

    python joined.py stage|elsewhere

In a stage it agrees with the others and ends as a program does that has saved; elsewhere it does
nothing about the signal.
"""

import json
import sys
import time
from collections.abc import Sequence

import jax

from agenticrec_jax.cli import app
from agenticrec_jax.errors import Terminated
from agenticrec_jax.parallel import multihost
from agenticrec_jax.runtime.termination import Termination


def main(argv: Sequence[str]) -> None:
    multihost.initialize("auto")
    indices = multihost.allgather(jax.process_index())
    seen = {"process": jax.process_index(), "all": indices, "devices": jax.device_count()}
    print(json.dumps(seen), flush=True)
    if argv[1] == "elsewhere":
        time.sleep(600)
    with Termination() as termination:
        print("waiting", flush=True)
        while not termination.due():
            time.sleep(0.05)
    raise Terminated(f"process {jax.process_index()}: saved")


if __name__ == "__main__":
    sys.argv.append("--compilation_cache=")
    app.run(main, ["place"])
