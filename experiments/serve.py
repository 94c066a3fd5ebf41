"""Serves recommendations of a trained policy over HTTP.

    python -m experiments.serve --workdir=DIR [--port=8000] [--refit] [--timeout_ms=10000]

The workdir is that of ``quickstart``, ``train_policy`` or ``evaluate``, as for ``recommend``.
``POST /v1/recommend`` answers a user of the log or a history, ``POST /v1/rerank`` speaks to clients
of Cohere, Jina and vLLM. ``/openapi.json`` describes both, ``/healthz``, ``/readyz`` and
``/metrics`` are for machines. A request is ranked beside those that run, as soon as a slot of the
engine is free. One that the policy does not answer within its ``timeout_ms`` gets SASRec's order,
with ``"fallback": true``.

Only this machine can connect unless ``--host`` says otherwise. With ``--api_key_file`` requests
have to bring the key of that file (``Authorization: Bearer KEY``). SIGTERM ends the program after
the requests that it has. Each request is a JSON line on stderr; ``--trajectories=FILE`` keeps what
the policy did, by the same trace id. Needs the extra ``serve``.
"""

import contextlib
import sys
from collections.abc import Sequence

from absl import flags

from agenticrec_jax.cli import app
from agenticrec_jax.cli.configs import define_config
from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.paths import Appender, Path, make_directory
from agenticrec_jax.runs import run_config
from agenticrec_jax.runtime.phases import phase
from agenticrec_jax.serving import Recommender
from agenticrec_jax.serving.http.bodies import LONGEST_MS

_CONFIG = define_config(None)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
_POLICY = flags.DEFINE_string("policy", None, "Policy directory; the run's if not given.")
_REFIT = flags.DEFINE_bool("refit", False, "Fit the tools' artifacts on the whole log.")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen at.")
_PORT = flags.DEFINE_integer(
    "port", 8000, "Port to listen at; 0 for a free one.", lower_bound=0, upper_bound=65535
)
_TIMEOUT_MS = flags.DEFINE_integer(
    "timeout_ms",
    10_000,
    "Time budget of a request that names none.",
    lower_bound=1,
    upper_bound=LONGEST_MS,
)
_TOOL_TIMEOUT = flags.DEFINE_float(
    "tool_timeout", 2.0, "Seconds that a tool may take.", lower_bound=0.001, upper_bound=600.0
)
_WAITING = flags.DEFINE_integer(
    "waiting", 64, "Requests that may wait; others are answered 429.", lower_bound=1
)
_BODY_BYTES = flags.DEFINE_integer("body_bytes", 2**20, "Largest body.", lower_bound=1)
_API_KEY_FILE = flags.DEFINE_string("api_key_file", None, "File of the key that requests bring.")
_TRAJECTORIES = flags.DEFINE_string("trajectories", None, "File for trajectories, one a line.")


def main(argv: Sequence[str]) -> None:
    del argv
    try:
        from agenticrec_jax.serving.http.app import Limits, make_app
        from agenticrec_jax.serving.http.server import bound_socket, log_requests, serve
    except ImportError as error:
        raise InputError(
            f"serve: found no package {error.name}, expected the extra serve: "
            'pip install "agenticrec-jax[serve]"'
        ) from None
    key = read_key(_API_KEY_FILE.value) if _API_KEY_FILE.value else None
    if not key and not _HOST.value.startswith("127.") and _HOST.value not in ("::1", "localhost"):
        print(f"warning: {_HOST.value} needs no key and others can reach it", file=sys.stderr)
    bound = bound_socket(_HOST.value, _PORT.value)
    app.print_devices()
    with phase("policy, data and tools"):
        recommender = Recommender.load(
            _WORKDIR.value,
            policy=_POLICY.value,
            config=run_config(_CONFIG.value) if _CONFIG.value else None,
            tool_timeout=_TOOL_TIMEOUT.value,
        )
        if _REFIT.value:
            recommender.refit()
    print(f"policy: {recommender.run.policy_directory}", flush=True)
    limits = Limits(
        timeout_ms=_TIMEOUT_MS.value, waiting=_WAITING.value, body_bytes=_BODY_BYTES.value
    )
    log_requests()
    with contextlib.ExitStack() as stack:
        trajectories = None
        if _TRAJECTORIES.value:
            make_directory(Path(_TRAJECTORIES.value).parent, "flag --trajectories")
            trajectories = stack.enter_context(Appender(_TRAJECTORIES.value))
        serve(make_app(recommender, limits, api_key=key, trajectories=trajectories), bound)
    print("ended: all requests are answered", flush=True)


def read_key(file: str) -> str:
    """Returns the API key of a file."""
    key = Path(file).read_text(encoding="utf-8").strip()
    expect(
        key.isascii() and len(key.split()) == 1,
        f"{file}, line 1",
        f"{len(key)} characters",
        "a key without blanks",
    )
    return key


if __name__ == "__main__":
    app.run(main)
