"""The load on a server: its counts, on a server that answers as told."""

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from experiments.benchmarks.serving import late, load

STATUS = {"answered": 200, "by_sasrec": 200, "refused": 429}


class Handler(BaseHTTPRequestHandler):
    """Answers a body as its user says; hangs up on the user ``cut``."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        user = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["user"]
        if user == "cut":
            self.close_connection = True
            return
        text = json.dumps({"fallback": user == "by_sasrec"}).encode()
        self.send_response(STATUS[user])
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def address():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("at_once", [1, 4])
def test_lost_and_late_answers_are_counted(address, at_once):
    users = ["answered"] * 5 + ["by_sasrec"] * 2 + ["refused", "cut", "cut"]
    got = asyncio.run(load(address, [{"user": user} for user in users], at_once))
    assert (got["lost"], got["fallback"], len(got["ms"])) == (3, 2, 10)
    assert late([10.0, 1099.0, 1101.0], budget_ms=1000.0) == 1
