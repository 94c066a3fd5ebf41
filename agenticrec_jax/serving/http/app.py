"""The ASGI application: routes, limits, and one trace id through answer, log and trajectory."""

import asyncio
import contextlib
import dataclasses
import functools
import hmac
import logging
import time
from collections.abc import AsyncIterator
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agenticrec_jax import strict_json
from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.errors import InputError, shorten
from agenticrec_jax.paths import Appender
from agenticrec_jax.serving.answers import sasrecs_answer
from agenticrec_jax.serving.http import openapi
from agenticrec_jax.serving.http.bodies import RecommendBody, RerankBody
from agenticrec_jax.serving.http.engine_thread import EngineThread, Job, QueueFull
from agenticrec_jax.serving.http.metrics import ServerMetrics
from agenticrec_jax.serving.http.rerank import read_rerank, rerank_answer, titles_of
from agenticrec_jax.serving.http.tracing import HungUp, Traced, answer_error
from agenticrec_jax.serving.recommendations import Recommendation
from agenticrec_jax.serving.recommender import Recommender
from agenticrec_jax.serving.requests import Question, checked
from agenticrec_jax.types import TIMEOUT

DISCARDED = 64 * 2**20  # bytes of a body that is too large which are read, so that 413 arrives
BODY_SECONDS = 10.0
Body = TypeVar("Body", bound=BaseModel)
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Attributes:
      timeout_ms: time budget of a request that names none.
      waiting: requests that may wait for the engine.
      body_bytes: largest body of a request.
    """

    timeout_ms: int = 10_000
    waiting: int = 64
    body_bytes: int = 2**20


def make_app(
    recommender: Recommender,
    limits: Limits,
    *,
    api_key: str | None = None,
    trajectories: Appender | None = None,
) -> Starlette:
    """Returns the application; its lifespan runs the thread that has the engine.

    Args:
      recommender: answers the requests; it is warm, and was loaded with a ``tool_timeout``.
      limits: of requests.
      api_key: that requests for recommendations have to bring; None for none.
      trajectories: file that each trajectory is appended to, with its trace id; None for none.
    """
    return _Service(recommender, limits, api_key, trajectories).app()


class _Service:
    """Endpoints of one server."""

    def __init__(
        self,
        recommender: Recommender,
        limits: Limits,
        api_key: str | None,
        trajectories: Appender | None,
    ):
        self._recommender = recommender
        self._limits = limits
        self._api_key = api_key
        self._trajectories = trajectories
        self._titles = titles_of(recommender.run.data.log.items)
        self._metrics = ServerMetrics(recommender.tool_names)
        self._document = openapi.document()
        self._engine: EngineThread | None = None

    def app(self) -> Starlette:
        routes = [
            Route("/v1/recommend", self.recommend, methods=["POST"]),
            Route("/v1/rerank", self.rerank, methods=["POST"]),
            Route("/v2/rerank", self.rerank, methods=["POST"]),  # of Cohere's newer clients
            Route("/healthz", self.healthz),
            Route("/readyz", self.readyz),
            Route("/metrics", self.metrics),
            Route("/openapi.json", self.openapi),
        ]
        paths = [route.path for route in routes]
        return Starlette(
            routes=routes,
            lifespan=self._lifespan,
            middleware=[Middleware(Traced, paths=paths, on_request=self._metrics.count_request)],
            exception_handlers={
                HTTPException: _refuse,
                InputError: lambda request, error: answer_error(request, 422, str(error)),
            },
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        engine = EngineThread(self._recommender, self._limits.waiting, self._record)
        self._metrics.watch(engine)
        self._engine = engine
        yield
        # All requests are answered by now; a tool that hangs may still have the thread.
        self._engine = None
        await asyncio.to_thread(engine.close, 1.0)

    async def recommend(self, request: Request) -> Response:
        body = await self._body(request, RecommendBody)
        question = Question(
            user=body.user, history=body.history, candidates=body.candidates, k=body.k, where="body"
        )
        answer = await self._answer(request, question, body.timeout_ms)
        record = answer.record() | {
            "fallback": answer.fallback is not None,
            "fallback_reason": answer.fallback,
            "trace_id": request.scope["trace_id"],
        }
        return _json(record)

    async def rerank(self, request: Request) -> Response:
        body = await self._body(request, RerankBody)
        reranking = await asyncio.to_thread(read_rerank, body, self._recommender, self._titles)
        answer = None
        if reranking.question:
            answer = await self._answer(request, reranking.question, body.timeout_ms)
        return _json(rerank_answer(body, reranking, answer, request.scope["trace_id"]))

    async def healthz(self, request: Request) -> Response:
        works = self._engine is not None and self._engine.alive
        return _json({"status": "ok" if works else "failed"}, 200 if works else 503)

    async def readyz(self, request: Request) -> Response:
        ready = self._engine is not None and not self._engine.full
        return _json({"status": "ready" if ready else "busy"}, 200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def openapi(self, request: Request) -> Response:
        return _json(self._document)

    async def _answer(
        self, request: Request, question: Question, timeout_ms: int | None
    ) -> Recommendation:
        """Returns the policy's answer, or SASRec's where the time budget ends first."""
        started = request.scope["started"]
        deadline = started + (timeout_ms or self._limits.timeout_ms) / 1000
        try:
            if self._engine.full:  # before the work of preparing a request that is refused
                raise QueueFull
            prepared = await asyncio.to_thread(self._recommender.prepare, question)
            job = Job(prepared.prompted, deadline, request.scope["trace_id"])
            self._engine.submit(job)
        except QueueFull:
            message = f"found {self._limits.waiting} requests that wait, expected fewer"
            raise HTTPException(429, message, {"Retry-After": "1"}) from None
        trajectory = await self._trajectory(request, job)
        seconds = time.monotonic() - started
        if trajectory is None:
            make = functools.partial(sasrecs_answer, prepared, TIMEOUT, seconds=seconds)
        else:
            make = functools.partial(
                self._recommender.finish, prepared, trajectory, seconds=seconds
            )
        answer = await asyncio.to_thread(make)
        if answer.fallback:
            self._metrics.count_fallback(answer.fallback)
            request.scope["log"] = {"fallback": answer.fallback}
        return answer

    async def _trajectory(self, request: Request, job: Job) -> Trajectory | None:
        """Returns a job's trajectory; None where its time ends first.

        Raises:
          HungUp: the client has closed its connection.
        """
        ended = asyncio.wrap_future(job.trajectory)
        hung_up = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait(
                (ended, hung_up),
                timeout=max(0.0, job.deadline - time.monotonic()),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if ended.done():
                return ended.result()
            if hung_up.done():
                raise HungUp
            return None
        finally:
            hung_up.cancel()
            self._engine.abandon(job)

    async def _body(self, request: Request, kind: type[Body]) -> Body:
        """Returns the checked body of an allowed request.

        Raises:
          HTTPException: the key, the type, the size or the JSON is wrong, or the body is late.
          InputError: a field is wrong.
        """
        self._check_key(request)
        declared = request.headers.get("content-type", "")
        if declared.split(";")[0].strip().lower() != "application/json":
            raise HTTPException(
                415, f"header Content-Type: found {shorten(declared)}, expected application/json"
            )
        try:
            async with asyncio.timeout(BODY_SECONDS):
                text = await self._read(request)
        except TimeoutError:
            message = f"body: found no end after {BODY_SECONDS:g} s, expected the whole body"
            raise HTTPException(408, message, {"Connection": "close"}) from None
        return await asyncio.to_thread(_parsed, text, kind)

    def _check_key(self, request: Request) -> None:
        if self._api_key is None:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        equal = hmac.compare_digest(key.strip().encode(), self._api_key.encode())
        if scheme.lower() != "bearer" or not equal:
            message = "header Authorization: found no valid key, expected Bearer and the API key"
            raise HTTPException(401, message, {"WWW-Authenticate": "Bearer"})

    async def _read(self, request: Request) -> bytes:
        """Returns the body. One that is too large is read on and dropped, within bounds.

        A client that still sends when the connection is closed may never see the answer.
        """
        most = self._limits.body_bytes
        size = int(request.headers.get("content-length", 0))
        pieces = []
        if size <= most or (size <= DISCARDED and "expect" not in request.headers):
            size = 0
            async for piece in request.stream():
                size += len(piece)
                if size <= most:
                    pieces.append(piece)
                elif size > DISCARDED:
                    break
        if size > most:
            message = f"body: found {size} bytes or more, expected at most {most}"
            raise HTTPException(413, message, {"Connection": "close"})
        return b"".join(pieces)

    def _record(self, trace_id: str, trajectory: Trajectory) -> None:
        self._metrics.count_trajectory(trajectory)
        if self._trajectories is None:
            return
        record = {"trace_id": trace_id} | trajectory.record()
        try:
            self._trajectories.write(strict_json.dumps(record, ensure_ascii=False) + "\n")
        except OSError as error:  # a full disk is no reason to answer nobody
            _LOG.error("a trajectory was not written: %s", error)


def _parsed(text: bytes, kind: type[Body]) -> Body:
    try:
        value = strict_json.loads(text)
    except ValueError as error:
        raise HTTPException(400, f"body: found no JSON ({error}), expected an object") from None
    return checked(kind, value, "body")


def _json(value: Any, status: int = 200) -> Response:
    text = strict_json.dumps(value, ensure_ascii=False)
    return Response(text, status, media_type="application/json")


async def _refuse(request: Request, error: HTTPException) -> Response:
    return answer_error(request, error.status_code, error.detail, error.headers)


async def _disconnected(request: Request) -> None:
    """Returns when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
