"""Metrics of the server in Prometheus' format. No label has a text of a client or of the policy."""

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.types import OBSERVATION, SAMPLED

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
ROWS = (1, 2, 4, 8, 16, 32, 64)
OTHER = "other"


class ServerMetrics:
    """Counters of one server.

    Args:
      tools: names of the tools; calls of others are counted as ``other``.
    """

    def __init__(self, tools: Sequence[str]):
        self._tools = frozenset(tools)
        self._registry = CollectorRegistry()
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
        self._batches = Histogram(
            "agenticrec_batch_requests",
            "Requests that one call of the engine began with.",
            buckets=ROWS,
            **registry,
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
            "agenticrec_waiting_requests", "Requests that wait for the engine.", **registry
        )

    def watch_waiting(self, waiting: Callable[[], int]) -> None:
        """Reads the number of waiting requests from a function."""
        self._waiting.set_function(waiting)

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Counts an answered request."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def count_fallback(self, reason: str) -> None:
        """Counts an answer in SASRec's order."""
        self._fallbacks.labels(reason).inc()

    def count_batch(self, requests: int) -> None:
        """Counts a call of the engine."""
        self._batches.observe(requests)

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
