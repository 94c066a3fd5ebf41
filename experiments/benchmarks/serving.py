"""Loads the server on the loopback: requests one after another, and 16 at once.

    python -m experiments.benchmarks.serving --workdir=DIR --json=FILE [--policy=DIR]
        [--requests=200] [--at_once=16] [--alone=40] [--timeout_ms=10000] [--address=URL]

The server is a process of its own, started on the workdir as a person starts it, with the embedded
tiny policy by default. Each request names a user of the log and 20 candidates drawn from the
catalog. ``bound`` of the throughput is three times that of one request after another, of which half
are sent before the others and half after them. A client sends its next request as soon as it has an
answer. Late is an answer more than 100 ms above its time budget, lost is one that is no answer of
status 200. The client computes on the same cores as the server.

The server's own counters say where the time goes: the share that the engine spends in each of its
programs, in waiting for tools and in Python, the share without any request in it, the requests in a
decoding step and the rows that are computed for them, and the processor time of a request. Where a
request takes nearly as much of it among others as alone, throughput is bound by the cores.
"""

import asyncio
import contextlib
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import httpx2
import numpy as np
from absl import flags
from prometheus_client.parser import text_string_to_metric_families

from agenticrec_jax.bundled import ROOT
from agenticrec_jax.cli import app
from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.paths import as_path
from agenticrec_jax.runs.data import load_data
from agenticrec_jax.runs.remembered import remembered
from experiments.benchmarks.figures import figure, publish

CANDIDATES = 20
SLACK_MS = 100.0
TIMES = 3.0  # least throughput at once, in times that of one after another
PART = "agenticrec_engine_part_seconds_total"
CPU = "process_cpu_seconds_total"
TINY = ROOT / "tools_data" / "tiny_policy"

_JSON = flags.DEFINE_string("json", "", "File of the figures.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of a run.", required=True)
_ADDRESS = flags.DEFINE_string("address", None, "Of a server that runs; started if not given.")
_POLICY = flags.DEFINE_string("policy", str(TINY), "Policy directory.")
_REQUESTS = flags.DEFINE_integer("requests", 200, "Requests at once, in all.", lower_bound=2)
_ALONE = flags.DEFINE_integer("alone", 40, "Requests one after another.", lower_bound=2)
_AT_ONCE = flags.DEFINE_integer("at_once", 16, "Requests at once.", lower_bound=2)
_TIMEOUT_MS = flags.DEFINE_integer("timeout_ms", 10_000, "Time budget of each.", lower_bound=1)


def main(argv: Sequence[str]) -> None:
    del argv
    settings = {
        "policy": _POLICY.value,
        "requests": _REQUESTS.value,
        "alone": _ALONE.value,
        "at_once": _AT_ONCE.value,
        "timeout_ms": _TIMEOUT_MS.value,
        "candidates": CANDIDATES,
    }
    publish(measure, _JSON.value, packages=("starlette", "uvicorn"), settings=settings)


def measure() -> list[dict]:
    """Returns the figures of both kinds."""
    config, _ = remembered(as_path(_WORKDIR.value))
    bodies = requests_of(load_data(config.dataset, as_path(_WORKDIR.value)).log, _REQUESTS.value)
    running = contextlib.nullcontext(_ADDRESS.value) if _ADDRESS.value else server()
    with running as address:
        asyncio.run(load(address, bodies, _AT_ONCE.value))  # warm: compiles the shapes that occur
        asyncio.run(load(address, bodies[:4], 1))
        half = -(-_ALONE.value // 2)
        before = asyncio.run(load(address, bodies[:half], 1))
        together = asyncio.run(load(address, bodies, _AT_ONCE.value))
        after = asyncio.run(load(address, bodies[half : _ALONE.value], 1))
    alone = joined(before, after)
    ratio = together["throughput"] / alone["throughput"]
    rows = [figure("throughput at once", "times one after another", ratio, bound=TIMES)]
    for name, got in (("one after another", alone), (f"{_AT_ONCE.value} at once", together)):
        rows += [
            figure(f"{name}: throughput", "requests/s", got["throughput"]),
            figure(f"{name}: median", "ms", statistics.median(got["ms"])),
            figure(f"{name}: 95th percentile", "ms", float(np.quantile(got["ms"], 0.95))),
            figure(f"{name}: slowest", "ms", max(got["ms"]), bound=_TIMEOUT_MS.value + SLACK_MS),
            figure(f"{name}: lost", "requests", got["lost"], bound=0),
            figure(f"{name}: late", "requests", late(got["ms"], _TIMEOUT_MS.value), bound=0),
            figure(f"{name}: in SASRec's order", "requests", got["fallback"]),
            *(figure(f"{name}: {what}", unit, value) for what, unit, value in shares(got)),
        ]
    return rows


def shares(got: dict) -> list[tuple[str, str, float]]:
    """Returns names, units and values of where the time of a load went."""
    counted, seconds = got["counted"], got["seconds"]
    engine = {name: value for (metric, name), value in counted.items() if metric == PART}
    called = counted["agenticrec_engine_seconds_total", ""]
    engine["Python"] = called - sum(engine.values())
    steps = max(1.0, counted["agenticrec_engine_decode_steps_total", ""])
    return [
        *((f"engine, {name}", "share of the time", s / seconds) for name, s in engine.items()),
        ("engine without a request", "share of the time", 1 - called / seconds),
        *(
            (what, "in a decoding step", counted[f"agenticrec_engine_{name}_total", ""] / steps)
            for what, name in (("requests", "decode_tokens"), ("rows", "decode_row_steps"))
        ),
        ("processor", "s / request", counted[CPU, ""] / len(got["ms"])),
        ("cores of the server in use", "cores", counted[CPU, ""] / seconds),
        ("compiled", "programs", counted["agenticrec_engine_compilations_total", ""]),
    ]


def joined(one: dict, other: dict) -> dict:
    """Returns two loads as one."""
    got = {name: one[name] + other[name] for name in ("ms", "lost", "fallback", "seconds")}
    counted = {name: one["counted"][name] + other["counted"][name] for name in one["counted"]}
    return got | {"counted": counted, "throughput": len(got["ms"]) / got["seconds"]}


def requests_of(log: InteractionLog, count: int) -> list[dict]:
    """Returns bodies of requests: users in turn, and candidates drawn for each."""
    rng = np.random.default_rng(0)
    users = rng.choice(log.user_ids, count)
    bodies = []
    for user in users:
        items = rng.permutation(log.num_items)[:CANDIDATES]
        candidates = [log.items.item_id[item] for item in items]
        body = {"user": str(user), "candidates": candidates, "timeout_ms": _TIMEOUT_MS.value}
        bodies.append(body)
    return bodies


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Starts the server and yields its address; ends it by SIGTERM."""
    command = [sys.executable, "-m", "experiments.serve", "--port=0"]
    command += [f"--workdir={_WORKDIR.value}", f"--policy={_POLICY.value}"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        lines = iter(process.stdout.readline, "")
        match = next((m for m in (re.search(r"http://\S+", line) for line in lines) if m), None)
        if match is None:
            raise RuntimeError(f"the server ended with status {process.wait()}")
        yield match[0]
    finally:
        process.terminate()
        process.wait(60)


async def load(address: str, bodies: Sequence[dict], at_once: int) -> dict:
    """Sends requests, ``at_once`` at a time; returns throughput, times and faults."""
    waiting = iter(bodies)
    ms, lost, fallback = [], 0, 0

    async def client(http: httpx2.AsyncClient) -> None:
        nonlocal lost, fallback
        for body in waiting:
            start = time.perf_counter()
            try:
                response = await http.post("/v1/recommend", json=body)
                answered = response.status_code == 200
            except httpx2.HTTPError:
                answered = False
            ms.append(1000 * (time.perf_counter() - start))
            lost += not answered
            fallback += answered and response.json()["fallback"]

    async with httpx2.AsyncClient(base_url=address, timeout=600) as http:
        before = await counters(http)
        start = time.perf_counter()
        await asyncio.gather(*(client(http) for _ in range(at_once)))
        seconds = time.perf_counter() - start
        after = await counters(http)
    return {
        "throughput": len(bodies) / seconds,
        "seconds": seconds,
        "ms": ms,
        "lost": lost,
        "fallback": fallback,
        "counted": {name: value - before[name] for name, value in after.items()},
    }


async def counters(http: httpx2.AsyncClient) -> dict[tuple[str, str], float]:
    """Returns the engine's and the process's counters by metric and label."""
    text = (await http.get("/metrics")).text
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for metric in text_string_to_metric_families(text)
        for sample in metric.samples
        if sample.name.startswith("agenticrec_engine_") or sample.name == CPU
    }


def late(ms: Sequence[float], budget_ms: float) -> int:
    """Returns the number of answers more than 100 ms above their time budget."""
    return sum(one > budget_ms + SLACK_MS for one in ms)


if __name__ == "__main__":
    app.run(main)
