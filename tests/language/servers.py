"""A server on the loopback that answers as an OpenAI-compatible endpoint does."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any, dict[str, str]]  # status, body (text, or an object for JSON), headers


class Server(ThreadingHTTPServer):
    """Answers requests by a function of their body, and keeps them.

    Attributes:
      requests: (path, headers, body) of each request.
      most: most requests that were open at once.
    """

    daemon_threads = True

    def __init__(self, answer: Callable[[dict], Reply]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.requests: list[tuple[str, dict, dict]] = []
        self.open = 0
        self.most = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.requests.append((self.path, dict(self.headers), body))
            server.open += 1
            server.most = max(server.most, server.open)
        try:
            status, content, headers = server.answer(body)
        finally:
            with server.lock:
                server.open -= 1
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


def completion(text: str | None) -> Reply:
    """The reply of a chat completion."""
    return 200, {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}, {}


@contextlib.contextmanager
def serving(answer: Callable[[dict], Reply]) -> Iterator[Server]:
    """A server that runs within the context."""
    server = Server(answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
