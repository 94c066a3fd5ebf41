"""Counters of one call of the engine."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

_UNTIL = "seconds of its dispatches, until the result is on the host; the first include compilation"

COUNTERS = {
    "prompt_tokens": "computed tokens of prompts; a prompt counts once for its group",
    "sampled_tokens": "sampled tokens of completions",
    "observed_tokens": "tokens of observations that were appended",
    "spliced_tokens": "tokens that splice computed: observations, and the last token of each call",
    "prefill_dispatches": "dispatches of prefill",
    "join_dispatches": "dispatches of join",
    "decode_dispatches": "dispatches of decode",
    "splice_dispatches": "dispatches of splice",
    "decode_steps": "steps of all dispatches of decode",
    "decode_row_steps": "decode_steps times the rows that were computed, padding included",
    "slot_steps": "decode_steps times all slots",
    "decode_tokens": "sampled tokens that came from decode",
    "drain_slot_steps": "slot_steps after the last row got its slot",
    "drain_tokens": "decode_tokens after the last row got its slot",
    "page_steps": "decode_steps times the pages in use, 0 without pages",
    "preempted_rows": "rows that gave their pages back when these ran out; each counts every time",
    "branched_rows": "branches that began at a reply",
    "recomputed_tokens": "tokens computed again: of rows that had given their pages back, and of "
    "branches that found no room",
    "calls": "answered turns, those that their token budget ended included",
    "failed_calls": "calls whose answer timed out, raised or was malformed",
    "compilations": "programs compiled, or loaded from a cache on disk",
    "prefill_seconds": f"prefill: {_UNTIL}",
    "join_seconds": f"join: {_UNTIL}",
    "decode_seconds": f"decode: {_UNTIL}",
    "splice_seconds": f"splice: {_UNTIL}",
    "tool_wait_seconds": "seconds in which no program ran because answers were awaited",
    "seconds": "seconds of the whole call",
}
"""Name -> meaning of each counter of ``Engine.telemetry``."""


class Telemetry(dict[str, float]):
    """The counters, all 0 at first."""

    def __init__(self):
        super().__init__(dict.fromkeys(COUNTERS, 0))

    def count(self, **counts: float) -> None:
        """Adds to counters."""
        for name, count in counts.items():
            self[name] += count

    @contextmanager
    def timed(self, program: str) -> Iterator[None]:
        """Counts the block as one dispatch of a program, with its time."""
        start = time.perf_counter()
        yield
        self[f"{program}_seconds"] += time.perf_counter() - start
        self[f"{program}_dispatches"] += 1
