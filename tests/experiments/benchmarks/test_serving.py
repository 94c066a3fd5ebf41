"""The load on a server: its counts, on a server that answers as told."""

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from experiments.benchmarks.serving import joined, late, load, shares

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

    def do_GET(self):
        """The counters of an engine that decodes for two of four seconds between two questions."""
        n = self.server.scrapes = getattr(self.server, "scrapes", -1) + 1
        text = "".join(
            f"{line} {value * n}\n"
            for line, value in [
                ('agenticrec_engine_part_seconds_total{part="decode"}', 2.0),
                ("agenticrec_engine_seconds_total", 3.0),
                ("agenticrec_engine_decode_steps_total", 10),
                ("agenticrec_engine_decode_tokens_total", 35),
                ("agenticrec_engine_decode_row_steps_total", 40),
                ("agenticrec_engine_compilations_total", 1),
                ("process_cpu_seconds_total", 6.0),
                ("agenticrec_waiting_requests", 3),
            ]
        ).encode()
        self.send_response(200)
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


def test_where_the_time_goes_is_read_of_the_servers_counters(address):
    loads = [asyncio.run(load(address, [{"user": "answered"}] * 2, 1)) for _ in range(2)]
    got = joined(*(one | {"seconds": 4.0} for one in loads))
    assert len(got["ms"]) == 4 and got["throughput"] == 0.5
    assert {what: value for what, _, value in shares(got)} == {
        "engine, decode": 0.5,
        "engine, Python": 0.25,
        "engine without a request": 0.25,
        "requests": 3.5,
        "rows": 4.0,
        "processor": 3.0,
        "cores of the server in use": 1.5,
        "compiled": 2.0,
    }
