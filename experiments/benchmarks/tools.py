"""How long each tool's calls take on a catalog of 60,000 items, and what searches of more find.

    python -m experiments.benchmarks.tools --json=FILE [--items=60000] [--users=20000] [--calls=512]

The catalog, the log and SASRec's numbers are made up; what a call costs depends on their sizes.
Every call is another view's, with other arguments; views begin 128 at a time, as episodes do in the
engine, and the share of ``Toolbox.prepare`` is part of a call. ``bound`` is what is asked for:
1 ms, or 10 ms where a title is misspelled. The peer of a misspelled title is rapidfuzz over all
titles. What that finds need not be better: ``fuzz.WRatio`` gives 90 of 100 to a title of one or
two letters that the text happens to hold, and no run of three proposes it. So beside the
agreement it is counted how often the title that was misspelled is found.

For ``--rows`` random vectors (10,000,000; 0 for none) recall is measured of the search that a TPU
would do, ``jax.lax.approx_max_k``: each of so many windows of the scores keeps its largest, and the
best of those are found. Here that reduction is played in numpy, since XLA sorts on other devices.
With libtpu the search is also compiled for a chip of ``v5e:4x4``: that shows that the program
exists and how much memory it takes, and no speed.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx
from jax.sharding import SingleDeviceSharding

from agenticrec_jax.cli import app
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import InteractionLog, make_log
from agenticrec_jax.data.splits import FitRange
from agenticrec_jax.dryrun.topology import slice_devices
from agenticrec_jax.sequential.sasrec import Sasrec, SasrecConfig
from agenticrec_jax.sequential.search import RECALL, SEARCHED, top_k
from agenticrec_jax.testing.synthetic import DAY, START, SyntheticConfig, synthetic_log
from agenticrec_jax.tools.artifacts import (
    NEAREST,
    Artifacts,
    fit_statistics,
    index_users,
)
from agenticrec_jax.tools.base import AsOfView, Toolbox
from agenticrec_jax.tools.names import CLOSE
from agenticrec_jax.tools.registry import agenticrec_tools, recthinker_tools
from agenticrec_jax.tools.text import ToolOptions
from agenticrec_jax.tools.titles import most_similar, title_index
from experiments.benchmarks.figures import figure, publish

BATCH = 128  # episodes that begin together
EXACT, MISSPELLED = 1.0, 10.0  # ms that a call may take
WIDTH, QUERIES, TITLES, CANDIDATES = 64, 8, 60, 20
SEEDS = {"log": 0, "model": 0, "views": 1, "calls": 2, "titles": 3, "large table": 4}
NEIGHBORS = ToolOptions().neighbors
CHUNK = 500_000  # rows of the large table that exist at once
SLICE = "v5e:4x4"


def main(argv: Sequence[str]) -> None:
    del argv
    publish(measure, _JSON.value, packages=("rapidfuzz", "numpy"), settings=settings())


def settings() -> dict:
    """The sizes and seeds that the figures are of."""
    asked = {"items": _ITEMS, "users": _USERS, "calls": _CALLS, "rows": _ROWS}
    return {name: flag.value for name, flag in asked.items()} | {
        "views at a time": BATCH,
        "candidates": CANDIDATES,
        "misspelled titles": TITLES,
        "width": WIDTH,
        "queries": QUERIES,
        "seeds": SEEDS,
    }


def measure() -> list[dict]:
    """All rows."""
    log = made_up_log(_ITEMS.value, _USERS.value)
    now = int(log.time[-1]) + DAY
    fit_range = FitRange(now, len(log))
    counts = fit_statistics(log, fit_range)
    config = SasrecConfig(items=log.num_items, width=WIDTH)
    start = time.perf_counter()
    index = index_users(Sasrec(config, rngs=nnx.Rngs(SEEDS["model"])), log, fit_range)
    rows = [figure("index of users and nearest items, made once", "s", _since(start))]
    artifacts = Artifacts(counts, index, fit_range)
    start = time.perf_counter()
    boxes = agenticrec_tools(artifacts), recthinker_tools(log.items, artifacts)
    rows.append(figure("knowledge graph, made once", "s", _since(start)))
    start = time.perf_counter()
    title_index(log.items.without_average_ratings)
    rows.append(figure("index of titles, made once", "s", _since(start)))
    views = as_asked(log, now, _CALLS.value)
    for box in boxes:
        rows += tool_rows(box, views)
    rows += title_rows(log)
    return rows + (large_rows(_ROWS.value) if _ROWS.value else [])


def made_up_log(items: int, users: int) -> InteractionLog:
    """Popularity by a Zipf law, eight events a user; the synthetic log's titles, and prices."""
    rng = np.random.default_rng(SEEDS["log"])
    size = SyntheticConfig(users=20, items=items, brands=200)
    prices = rng.uniform(1, 99, items).astype(np.float32)
    catalog = dataclasses.replace(synthetic_log(size, seed=SEEDS["log"]).items, price=prices)
    weight = rng.permutation(1.0 / np.arange(1, items + 1) ** 0.8)
    item = rng.choice(items, 8 * users, p=weight / weight.sum())
    when = START + DAY * np.sort(rng.integers(0, 600, 8 * users))
    names = [f"u{user}" for user in rng.permutation(np.repeat(np.arange(users), 8))]
    return make_log(names, item, when, rng.integers(1, 6, 8 * users), items=catalog)


def as_asked(log: InteractionLog, now: int, count: int) -> list[AsOfView]:
    """Views of different users after the log's end, with ``CANDIDATES`` random candidates each."""
    rng = np.random.default_rng(SEEDS["views"])
    views = []
    for user in rng.choice(log.num_users, count, replace=False).tolist():
        past = tuple(log.item[log.events_of(user)][-10:].tolist())
        drawn = tuple(rng.choice(log.num_items, CANDIDATES, replace=False).tolist())
        example = RankingExample(user, user, len(log), now, past, drawn, drawn[0], "test")
        views.append(AsOfView(log, example))
    return views


def misspelled(title: str, rng: np.random.Generator) -> str:
    """The title with two letters left out and another two exchanged for an x."""
    letters = list(title)
    for place in rng.integers(len(letters), size=2):
        letters[place] = "x"
    for _ in range(2):
        del letters[rng.integers(len(letters))]
    return "".join(letters)


def arguments_of(schema: dict, view: AsOfView, rng: np.random.Generator) -> Iterator[tuple]:
    """(how the call asks, its arguments, its bound in ms) for each way to ask a tool."""
    titles = view.items.title
    title = titles[rng.integers(len(titles))]
    names = {"address": (f"h{rng.integers(1, 1 + len(view.history))}", EXACT)}
    names |= {"title": (title, EXACT), "misspelled title": (misspelled(title, rng), MISSPELLED)}
    required = schema["parameters"]["required"]
    for how, (name, bound) in names.items():
        if required == ["item_name"]:
            yield how, {"item_name": name}, bound
        elif required == ["item_ids"]:
            yield how, {"item_ids": [name]}, bound
    if required == ["k"]:
        yield "10", {"k": 10}, EXACT
    elif not required:
        yield "", {}, EXACT


def tool_rows(box: Toolbox, views: Sequence[AsOfView]) -> list[dict]:
    """Median and 95th percentile of every tool's calls, each way to ask, in milliseconds."""
    rng, taken = np.random.default_rng(SEEDS["calls"]), {}
    box.prepare(views[:BATCH])  # compiles
    for start in range(0, len(views), BATCH):
        batch = views[start : start + BATCH]
        begun = time.perf_counter()
        box.prepare(batch)
        share = _since(begun) / len(batch)
        for view in batch:
            for schema in box.schemas():
                for how, arguments, bound in arguments_of(schema, view, rng):
                    begun = time.perf_counter()
                    seen = box.call(view, schema["name"], arguments)
                    seconds = _since(begun) + share * ("similar_users" in schema["name"])
                    assert seen.ok, seen
                    name = f"{schema['name']}({how})"
                    taken.setdefault((name, bound), []).append(1000 * seconds)
    return [
        figure(f"{name}: {what}", "ms", value, bound=bound if what == "p50" else None)
        for (name, bound), ms in taken.items()
        for what, value in (("p50", statistics.median(ms)), ("p95", np.percentile(ms, 95)))
    ]


def title_rows(log: InteractionLog, count: int = TITLES) -> list[dict]:
    """Look-up of a misspelled title beside a comparison with every title, and what it finds."""
    rng, titles = np.random.default_rng(SEEDS["titles"]), log.items.title_key
    index, pool = title_index(log.items.without_average_ratings), dict(enumerate(titles))
    meant = [titles[row] for row in rng.integers(len(titles), size=count)]
    texts = [misspelled(title, rng) for title in meant]
    ours, found = _timed(lambda text: index.nearest(text, 3, CLOSE), texts)
    full, best = _timed(lambda text: most_similar(text, pool, 3, CLOSE), texts)
    top = [[score for score, _ in near[:1]] for near in found + best]
    same = [a == b for a, b in zip(top[:count], top[count:], strict=True)]
    hits = [_found_share(meant, titles, rows) for rows in (found, best)]
    name = "rapidfuzz over all titles"
    return [
        figure("look-up of a misspelled title: p50", "ms", ours, full, name, MISSPELLED),
        figure("its best title as near as that of all", "share", float(np.mean(same))),
        figure("misspelled titles that are among the three found", "share", hits[0], hits[1], name),
    ]


def _found_share(meant: Sequence[str], titles: Sequence[str], found: list) -> float:
    """Share of the titles meant that are among those found."""
    pairs = zip(meant, found, strict=True)
    return float(np.mean([title in {titles[row] for _, row in near} for title, near in pairs]))


def _timed(ask: Callable, texts: Sequence[str]) -> tuple[float, list]:
    taken, found = [], []
    for text in texts:
        start = time.perf_counter()
        found.append(ask(text))
        taken.append(1000 * _since(start))
    return statistics.median(taken), found


def large_rows(size: int) -> list[dict]:
    """Recall of approximate searches of ``size`` vectors, and the memory of one on a TPU chip."""
    rows = []
    scores = np.concatenate(list(_scores(size)), axis=1)
    for count in (NEAREST, NEIGHBORS):
        name = f"recall of approx_max_k, played in numpy: {count} of {size} rows"
        rows.append(figure(name, "share", played_recall(scores, count), bound=RECALL))
    try:
        metadata.version("libtpu")
    except metadata.PackageNotFoundError:
        return rows
    name = f"search of {size} rows compiled for a chip of {SLICE}: memory"
    return [*rows, figure(name, "GiB", compiled_bytes(size) / 2**30)]


def _scores(size: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(SEEDS["large table"])
    queries = rng.standard_normal((QUERIES, WIDTH), np.float32)
    for start in range(0, size, CHUNK):
        yield queries @ rng.standard_normal((min(CHUNK, size - start), WIDTH), np.float32).T


def played_recall(scores: np.ndarray, count: int, target: float = RECALL) -> float:
    """Share of each row's ``count`` largest that the reduction of ``approx_max_k`` keeps.

    How many windows there are is JAX's own answer for ``target``; entry i is in window i modulo
    their number.
    """
    abstract = jax.ShapeDtypeStruct((1, scores.shape[1]), jnp.float32)
    reduced, _ = jax.eval_shape(
        lambda x: jax.lax.approx_max_k(x, count, recall_target=target, aggregate_to_topk=False),
        abstract,
    )
    windows = min(reduced.shape[1], scores.shape[1])
    shares = []
    for row in scores:
        least = np.partition(row, -count)[-count]
        best = np.flatnonzero(row >= least)
        padded = np.pad(row, (0, -len(row) % windows), constant_values=-np.inf)
        kept = padded.reshape(-1, windows).argmax(axis=0) * windows + np.arange(windows)
        shares.append(np.isin(best, kept).mean())
    return float(np.mean(shares))


def compiled_bytes(size: int) -> int:
    """Bytes that the search of ``SEARCHED`` queries takes of a TPU chip, its table included."""
    where = SingleDeviceSharding(slice_devices(SLICE)[0])
    shapes = ((SEARCHED, WIDTH), jnp.float32), ((size, WIDTH), jnp.float32)
    queries, table = (jax.ShapeDtypeStruct(*of, sharding=where) for of in shapes)
    exclude = jax.ShapeDtypeStruct((SEARCHED, 1), jnp.int32, sharding=where)
    memory = top_k.lower(queries, table, NEIGHBORS, exclude, RECALL).compile().memory_analysis()
    parts = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    return sum(getattr(memory, part) for part in parts)


def _since(start: float) -> float:
    return time.perf_counter() - start


if __name__ == "__main__":
    _JSON = flags.DEFINE_string("json", "", "File for the figures; nothing is written if empty.")
    _ITEMS = flags.DEFINE_integer("items", 60_000, "Items of the catalog.", lower_bound=100)
    _USERS = flags.DEFINE_integer("users", 20_000, "Users of the fit range.", lower_bound=1_500)
    _CALLS = flags.DEFINE_integer("calls", 512, "Calls of each kind.", lower_bound=1)
    _ROWS = flags.DEFINE_integer("rows", 10_000_000, "Rows of the large table; 0 for none.")
    app.run(main)
