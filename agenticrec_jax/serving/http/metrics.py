"""Metrics of the server in Prometheus' format. No label has a text of a client or of the policy."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.serving.http.engine_thread import EngineThread
from agenticrec_jax.types import OBSERVATION, SAMPLED

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
PROGRAMS = ("prefill", "join", "decode", "splice")
OTHER = "other"


class ServerMetrics:
    """Counters of one server.

    Args:
      tools: names of the tools; calls of others are counted as ``other``.
    """

    def __init__(self, tools: Sequence[str]):
        self._tools = frozenset(tools)
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        registry = {"registry": self._registry}
        self._requests = Counter(
            "agenticrec_requests", "Requests by path and status.", ["path", "status"], **registry
        )
        self._seconds = Histogram(
            "agenticrec_request_seconds",
            "Time from a request to its answer.",
            ["path"],
            buckets=SECONDS,
            **registry,
        )
        self._fallbacks = Counter(
            "agenticrec_fallbacks", "Answers in SASRec's order by reason.", ["reason"], **registry
        )
        self._tokens = Counter(
            "agenticrec_tokens", "Tokens of finished rollouts by kind.", ["kind"], **registry
        )
        self._calls = Counter(
            "agenticrec_tool_calls",
            "Tool calls by tool and outcome.",
            ["tool", "outcome"],
            **registry,
        )
        self._waiting = Gauge(
            "agenticrec_waiting_requests", "Requests that wait for a slot.", **registry
        )
        self._running = Gauge(
            "agenticrec_running_requests", "Requests that have a slot of the engine.", **registry
        )

    def watch(self, engine: EngineThread) -> None:
        """Reads the numbers of requests, and what the engine has counted, at each scrape."""
        self._waiting.set_function(lambda: engine.waiting)
        self._running.set_function(lambda: engine.running)
        self._registry.register(_EngineCollector(engine.counters))

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Counts an answered request."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def count_fallback(self, reason: str) -> None:
        """Counts an answer in SASRec's order."""
        self._fallbacks.labels(reason).inc()

    def count_trajectory(self, trajectory: Trajectory) -> None:
        """Counts tokens and calls of a finished rollout."""
        self._tokens.labels("prompt").inc(len(trajectory.prompt))
        self._tokens.labels("sampled").inc(int((trajectory.origin == SAMPLED).sum()))
        self._tokens.labels("observed").inc(int((trajectory.origin == OBSERVATION).sum()))
        for call in trajectory.calls:
            outcome = call.failure or ("ok" if call.ok else "refused")
            self._calls.labels(call.name if call.name in self._tools else OTHER, outcome).inc()

    def text(self) -> bytes:
        """Returns all metrics in the text format."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    """Counters of the engine, of which some are read while it computes."""

    def __init__(self, counters: Callable[[], Mapping[str, float]]):
        self._counters = counters

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        counters = self._counters()
        metric = CounterMetricFamily(
            "agenticrec_engine_part_seconds", "Time of the engine by part.", labels=["part"]
        )
        for name in (*PROGRAMS, "tool_wait"):
            metric.add_metric([name], counters.get(f"{name}_seconds", 0))
        yield metric
        metric = CounterMetricFamily(
            "agenticrec_engine_dispatches", "Dispatches by program.", labels=["program"]
        )
        for program in PROGRAMS:
            metric.add_metric([program], counters.get(f"{program}_dispatches", 0))
        yield metric
        for name, meaning in (
            ("seconds", "Time with requests in it; what is in no part is Python's."),
            ("decode_steps", "Decoding steps, in each of which all running requests are."),
            ("decode_row_steps", "The same times the rows that were computed, padding included."),
            ("decode_tokens", "Tokens of decoding steps; over the steps, the requests in one."),
            ("compilations", "Programs compiled."),
        ):
            yield CounterMetricFamily(
                f"agenticrec_engine_{name}", meaning, value=counters.get(name, 0)
            )
