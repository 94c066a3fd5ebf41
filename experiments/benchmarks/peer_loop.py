"""The peer's side of a paired benchmark: requests on stdin, answers on stdout.

Scripts beside it that run in a peer's environment import it, so it needs the standard library only.
Each line on stdin is a JSON object ``{"work", ...}``, answered with one line of JSON on stdout.
Output of the peer's library goes to stderr.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any


def serve(make: Callable[[], Any]) -> None:
    """Makes the peer and answers each request by its method of that name, until stdin ends."""
    answers = sys.stdout
    sys.stdout = sys.stderr
    peer = make()
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(peer, request.pop("work"))(**request)
        print(json.dumps(answer), file=answers, flush=True)


def converse(
    prompts: list[list[int]], observations: list, sample: Callable[[list, int], tuple[list, int]]
) -> int:
    """Runs conversations that a peer computes from the start in every turn.

    Args:
      prompts: ids of each row.
      observations: [turns - 1][rows][ids].
      sample: ``sample(rows, turn)`` returns the ids that continue each row, and the number of
        their log-probs.

    Returns:
      The number of sampled ids.
    """
    rows = prompts
    sampled = 0
    for turn, observed in enumerate([*observations, None]):
        ids, scored = sample(rows, turn)
        assert scored == sum(map(len, ids))
        sampled += scored
        if observed:
            triples = zip(rows, ids, observed, strict=True)
            rows = [row + new + observation for row, new, observation in triples]
    return sampled


class Stopwatch:
    """Measures wall and CPU seconds (of all threads) of a block, in the keys of an answer."""

    def __enter__(self) -> "Stopwatch":
        self._wall = time.perf_counter()
        self._cpu = time.process_time()
        return self

    def __exit__(self, *error) -> None:
        self.took = {
            "seconds": time.perf_counter() - self._wall,
            "cpu": time.process_time() - self._cpu,
        }


class Compilations:
    """Counts the programs that XLA compiles in this process, by events of ``jax.monitoring``."""

    def __init__(self, monitoring: Any):
        self.count = 0
        monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, seconds: float, **rest) -> None:
        self.count += event == "/jax/core/compile/backend_compile_duration"
