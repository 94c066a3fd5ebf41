"""A trace id for each request, in its answer and its log line; and answers that are errors."""

import logging
import re
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agenticrec_jax import strict_json
from agenticrec_jax.errors import InputError
from agenticrec_jax.serving.http.metrics import OTHER

CLIENT_CLOSED = 499  # in logs and metrics: nobody receives it
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_LOG = logging.getLogger(__name__)


class HungUp(Exception):
    """The client closed its connection before the answer."""


class Traced:
    """Middleware that gives each request a trace id and logs a JSON line when it is answered.

    The id is that of a W3C ``traceparent`` header, or a random one. It stands in
    ``scope["trace_id"]`` and in the header ``X-Trace-Id`` of the answer. ``scope["started"]`` is
    when the request came, by ``time.monotonic``.

    Args:
      app: the application.
      paths: that are logged and counted by their names.
      on_request: called with path, status and seconds of each request.
    """

    def __init__(
        self,
        app: ASGIApp,
        paths: Collection[str],
        on_request: Callable[[str, int, float], None],
    ):
        self._app = app
        self._paths = paths
        self._on_request = on_request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace_id = _trace_id(Headers(scope=scope))
        start = time.monotonic()
        scope |= {"trace_id": trace_id, "started": start}
        status = 0

        async def traced(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Trace-Id"] = trace_id
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            await self._app(scope, receive, traced)
        except (ClientDisconnect, HungUp):
            status = CLIENT_CLOSED
        except Exception:
            _LOG.exception("trace %s failed", trace_id)
            if not status:
                message = f"the server failed; its log names trace {trace_id}"
                answer = answer_error(Request(scope), 500, message)
                await answer(scope, receive, traced)
        finally:
            path = scope["path"] if scope["path"] in self._paths else OTHER
            seconds = time.monotonic() - start
            self._on_request(path, status or CLIENT_CLOSED, seconds)
            line = {
                "trace_id": trace_id,
                "method": scope["method"] if scope["method"] in ("GET", "POST") else OTHER,
                "path": path,
                "status": status or CLIENT_CLOSED,
                "seconds": round(seconds, 4),
            } | scope.get("log", {})
            _LOG.info("%s", strict_json.dumps(line))


def answer_error(
    request: Request, status: int, sentence: str, headers: Mapping[str, str] | None = None
) -> Response:
    """Returns an error of one sentence, in the form of OpenAI's and vLLM's; the log has it too."""
    phrase = HTTPStatus(status).phrase.lower().replace(" ", "_")
    message = str(InputError(sentence))  # one line, without characters that cannot be printed
    request.scope["log"] = {"error": message}
    body = {
        "error": {"message": message, "type": phrase, "code": status},
        "trace_id": request.scope["trace_id"],
    }
    text = strict_json.dumps(body, ensure_ascii=False)
    return Response(text, status, dict(headers or {}), "application/json")


def _trace_id(headers: Headers) -> str:
    match = _TRACEPARENT.fullmatch(headers.get("traceparent", ""))
    if match and set(match[1]) != {"0"}:
        return match[1]
    return secrets.token_hex(16)
