"""The process that serves an application: its socket, its log, and its end."""

import logging
import signal
import socket
import sys
import threading

import uvicorn
from starlette.types import ASGIApp

from agenticrec_jax.errors import InputError
from agenticrec_jax.serving.http.bodies import LONGEST_MS

CONNECTIONS = 512  # at once; others are answered 503


def bound_socket(host: str, port: int) -> socket.socket:
    """Returns a socket of an address, which does not listen yet.

    Raises:
      InputError: the address is not free, or not one of this machine.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        raise InputError(
            f"flags --host and --port: found {host}:{port}, expected a free address ({error})"
        ) from None
    return bound


def serve(app: ASGIApp, bound: socket.socket) -> None:
    """Answers requests until SIGTERM or SIGINT, and then those that have come.

    Prints the address once clients can connect.
    """
    # Uvicorn raises a signal again when it has drained; it asked for an end in order.
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
    bound.listen(CONNECTIONS)
    host, port = bound.getsockname()[:2]
    print(f"serving at http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    make_server(app).run(sockets=[bound])


def make_server(app: ASGIApp) -> uvicorn.Server:
    """Returns a server that writes no log of its own and ends when its requests are answered."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=LONGEST_MS // 1000 + 5,
        )
    )


def log_requests() -> None:
    """Logs the application's lines on stderr, as they are."""
    logger = logging.getLogger("agenticrec_jax.serving.http")
    logger.addHandler(logging.StreamHandler(sys.stderr))
    logger.setLevel(logging.INFO)
    logger.propagate = False
