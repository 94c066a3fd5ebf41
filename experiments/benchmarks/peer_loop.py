"""What the other side of a paired benchmark runs: requests on stdin, answers on stdout.

Imported by scripts beside it that run in a peer's own environment, so it needs nothing but Python.
Each line on stdin is a JSON object ``{"work", ...}``, answered with one line of JSON on stdout;
what the peer itself prints goes to stderr.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any


def serve(make: Callable[[], Any]) -> None:
    """Makes the peer and answers every request by its method of that name, till stdin ends."""
    answers, sys.stdout = sys.stdout, sys.stderr
    peer = make()
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(peer, request.pop("work"))(**request)
        print(json.dumps(answer), file=answers, flush=True)


def converse(
    prompts: list[list[int]], observations: list, sample: Callable[[list, int], tuple[list, int]]
) -> int:
    """Conversations that a peer computes from the start in every turn; how many ids it sampled.

    ``sample(rows, turn)`` gives the ids that every row goes on with, and how many log-probs it has
    with them; ``observations`` are [turns - 1][rows][ids].
    """
    rows, sampled = prompts, 0
    for turn, seen in enumerate([*observations, None]):
        ids, scored = sample(rows, turn)
        assert scored == sum(map(len, ids))
        sampled += scored
        if seen:
            rows = [row + more + told for row, more, told in zip(rows, ids, seen, strict=True)]
    return sampled


class Stopwatch:
    """Wall and CPU seconds (of all threads) of a block, as an answer has them."""

    def __enter__(self) -> "Stopwatch":
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *error) -> None:
        self.took = {
            "seconds": time.perf_counter() - self._wall,
            "cpu": time.process_time() - self._cpu,
        }


class Compilations:
    """Counts what XLA compiles in this process, told by ``jax.monitoring``."""

    def __init__(self, monitoring: Any):
        self.count = 0
        monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, seconds: float, **rest) -> None:
        self.count += event == "/jax/core/compile/backend_compile_duration"
