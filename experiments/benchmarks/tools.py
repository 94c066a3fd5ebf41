"""Times each tool's calls on a catalog of 60,000 items, and measures recall of larger searches.

    python -m experiments.benchmarks.tools --json=FILE [--items=60000] [--users=20000] [--calls=512]

The catalog, the log and SASRec's weights are synthetic; the time of a call depends on their sizes.
Each call has a new view and new arguments. Views are prepared 128 at a time, like episodes in the
engine, and a call includes its share of ``Toolbox.prepare``. ``bound`` is the required time: 1 ms,
or 10 ms for a misspelled title. The peer of a misspelled title is rapidfuzz over all titles. Its
result need not be better: ``fuzz.WRatio`` gives 90 of 100 to a title of one or two letters that is
in the text, which our index of trigrams does not propose. The share of found original titles
is therefore reported beside the agreement.

With ``--rows`` random vectors (10,000,000; 0 for none) the recall of a TPU's search,
``jax.lax.approx_max_k``, is measured: the scores are divided into windows, and the best of the
windows' maxima are returned. The reduction is emulated in numpy, because XLA sorts on other
devices. With libtpu the search is also compiled for a chip of ``v5e:4x4``, which gives its memory
and no speed.
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
from agenticrec_jax.tools.artifacts import NEAREST, Artifacts, index_users
from agenticrec_jax.tools.base import AsOfView, Toolbox
from agenticrec_jax.tools.names import CLOSE
from agenticrec_jax.tools.registry import agenticrec_tools, recthinker_tools
from agenticrec_jax.tools.statistics import fit_statistics
from agenticrec_jax.tools.text import ToolOptions
from agenticrec_jax.tools.titles import most_similar, title_index
from experiments.benchmarks.figures import figure, publish

BATCH = 128  # episodes that start together
EXACT = 1.0  # ms of a call
MISSPELLED = 10.0  # ms of a call with a misspelled title
WIDTH = 64
QUERIES = 8
TITLES = 60
CANDIDATES = 20
SEEDS = {"log": 0, "model": 0, "views": 1, "calls": 2, "titles": 3, "large table": 4}
NEIGHBORS = ToolOptions().neighbors
CHUNK = 500_000  # rows of the large table in memory at once
SLICE = "v5e:4x4"


def main(argv: Sequence[str]) -> None:
    del argv
    publish(measure, _JSON.value, packages=("rapidfuzz", "numpy"), settings=settings())


def settings() -> dict:
    """Returns the sizes and seeds of the figures."""
    sizes = {"items": _ITEMS, "users": _USERS, "calls": _CALLS, "rows": _ROWS}
    return {name: flag.value for name, flag in sizes.items()} | {
        "views at a time": BATCH,
        "candidates": CANDIDATES,
        "misspelled titles": TITLES,
        "width": WIDTH,
        "queries": QUERIES,
        "seeds": SEEDS,
    }


def measure() -> list[dict]:
    """Returns all rows."""
    log = random_log(_ITEMS.value, _USERS.value)
    now = int(log.time[-1]) + DAY
    fit_range = FitRange(now, len(log))
    counts = fit_statistics(log, fit_range)
    config = SasrecConfig(items=log.num_items, width=WIDTH)
    start = time.perf_counter()
    index = index_users(Sasrec(config, rngs=nnx.Rngs(SEEDS["model"])), log, fit_range)
    rows = [figure("index of users and nearest items, made once", "s", _since(start))]
    artifacts = Artifacts(counts, index, fit_range)
    start = time.perf_counter()
    toolboxes = (agenticrec_tools(artifacts), recthinker_tools(log.items, artifacts))
    rows.append(figure("knowledge graph, made once", "s", _since(start)))
    start = time.perf_counter()
    title_index(log.items.without_average_ratings)
    rows.append(figure("index of titles, made once", "s", _since(start)))
    views = random_views(log, now, _CALLS.value)
    for toolbox in toolboxes:
        rows += tool_rows(toolbox, views)
    rows += title_rows(log)
    return rows + (large_rows(_ROWS.value) if _ROWS.value else [])


def random_log(items: int, users: int) -> InteractionLog:
    """Draws a log: Zipf popularity, eight events a user, synthetic titles and random prices."""
    rng = np.random.default_rng(SEEDS["log"])
    size = SyntheticConfig(users=20, items=items, brands=200)
    prices = rng.uniform(1, 99, items).astype(np.float32)
    catalog = dataclasses.replace(synthetic_log(size, seed=SEEDS["log"]).items, price=prices)
    weight = rng.permutation(1.0 / np.arange(1, items + 1) ** 0.8)
    item = rng.choice(items, 8 * users, p=weight / weight.sum())
    times = START + DAY * np.sort(rng.integers(0, 600, 8 * users))
    names = [f"u{user}" for user in rng.permutation(np.repeat(np.arange(users), 8))]
    return make_log(names, item, times, rng.integers(1, 6, 8 * users), items=catalog)


def random_views(log: InteractionLog, now: int, count: int) -> list[AsOfView]:
    """Returns views of different users after the log's end, with random candidates."""
    rng = np.random.default_rng(SEEDS["views"])
    views = []
    for user in rng.choice(log.num_users, count, replace=False).tolist():
        history = tuple(log.item[log.events_of(user)][-10:].tolist())
        candidates = tuple(rng.choice(log.num_items, CANDIDATES, replace=False).tolist())
        example = RankingExample(
            user, user, len(log), now, history, candidates, candidates[0], "test"
        )
        views.append(AsOfView(log, example))
    return views


def misspelled(title: str, rng: np.random.Generator) -> str:
    """Returns the title without two letters and with another two replaced by an x."""
    letters = list(title)
    for position in rng.integers(len(letters), size=2):
        letters[position] = "x"
    for _ in range(2):
        del letters[rng.integers(len(letters))]
    return "".join(letters)


def arguments_of(schema: dict, view: AsOfView, rng: np.random.Generator) -> Iterator[tuple]:
    """Yields (kind of call, its arguments, its bound in ms) for each kind of a tool's calls."""
    titles = view.items.title
    title = titles[rng.integers(len(titles))]
    names = {"address": (f"h{rng.integers(1, 1 + len(view.history))}", EXACT)}
    names |= {"title": (title, EXACT), "misspelled title": (misspelled(title, rng), MISSPELLED)}
    required = schema["parameters"]["required"]
    for kind, (name, bound) in names.items():
        if required == ["item_name"]:
            yield kind, {"item_name": name}, bound
        elif required == ["item_ids"]:
            yield kind, {"item_ids": [name]}, bound
    if required == ["k"]:
        yield "10", {"k": 10}, EXACT
    elif not required:
        yield "", {}, EXACT


def tool_rows(toolbox: Toolbox, views: Sequence[AsOfView]) -> list[dict]:
    """Returns the median and 95th percentile of each kind of every tool's calls, in ms."""
    rng = np.random.default_rng(SEEDS["calls"])
    times: dict[tuple[str, float], list[float]] = {}  # ms by name and bound
    toolbox.prepare(views[:BATCH])  # compiles
    for start in range(0, len(views), BATCH):
        batch = views[start : start + BATCH]
        before = time.perf_counter()
        toolbox.prepare(batch)
        share = _since(before) / len(batch)
        for view in batch:
            for schema in toolbox.schemas():
                for kind, arguments, bound in arguments_of(schema, view, rng):
                    before = time.perf_counter()
                    observation = toolbox.call(view, schema["name"], arguments)
                    seconds = _since(before) + share * ("similar_users" in schema["name"])
                    assert observation.ok, observation
                    name = f"{schema['name']}({kind})"
                    times.setdefault((name, bound), []).append(1000 * seconds)
    return [
        figure(f"{name}: {what}", "ms", value, bound=bound if what == "p50" else None)
        for (name, bound), ms in times.items()
        for what, value in (("p50", statistics.median(ms)), ("p95", np.percentile(ms, 95)))
    ]


def title_rows(log: InteractionLog, count: int = TITLES) -> list[dict]:
    """Compares the look-up of misspelled titles with a comparison of all titles."""
    rng = np.random.default_rng(SEEDS["titles"])
    titles = log.items.title_key
    index = title_index(log.items.without_average_ratings)
    pool = dict(enumerate(titles))
    originals = [titles[row] for row in rng.integers(len(titles), size=count)]
    texts = [misspelled(title, rng) for title in originals]
    our_ms, our_matches = _timed(lambda text: index.nearest(text, 3, CLOSE), texts)
    full_ms, full_matches = _timed(lambda text: most_similar(text, pool, 3, CLOSE), texts)
    our_best = [[score for score, _ in near[:1]] for near in our_matches]
    full_best = [[score for score, _ in near[:1]] for near in full_matches]
    same = [a == b for a, b in zip(our_best, full_best, strict=True)]
    our_hits = hit_share(originals, titles, our_matches)
    full_hits = hit_share(originals, titles, full_matches)
    name = "rapidfuzz over all titles"
    return [
        figure("look-up of a misspelled title: p50", "ms", our_ms, full_ms, name, MISSPELLED),
        figure("its best title as near as that of all", "share", float(np.mean(same))),
        figure(
            "misspelled titles that are among the three found", "share", our_hits, full_hits, name
        ),
    ]


def hit_share(originals: Sequence[str], titles: Sequence[str], matches: list) -> float:
    """Returns the share of original titles among the matches of their misspelled forms."""
    pairs = zip(originals, matches, strict=True)
    return float(np.mean([title in {titles[row] for _, row in near} for title, near in pairs]))


def _timed(search: Callable, texts: Sequence[str]) -> tuple[float, list]:
    """Returns the median ms of a search, and its results."""
    times = []
    results = []
    for text in texts:
        start = time.perf_counter()
        results.append(search(text))
        times.append(1000 * _since(start))
    return statistics.median(times), results


def large_rows(size: int) -> list[dict]:
    """Returns the recall of approximate searches, and the memory of one on a TPU chip."""
    rows = []
    scores = np.concatenate(list(_scores(size)), axis=1)
    for count in (NEAREST, NEIGHBORS):
        name = f"recall of approx_max_k, played in numpy: {count} of {size} rows"
        rows.append(figure(name, "share", emulated_recall(scores, count), bound=RECALL))
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


def emulated_recall(scores: np.ndarray, count: int, target: float = RECALL) -> float:
    """Returns the share of each row's ``count`` largest after the reduction of ``approx_max_k``.

    JAX decides the number of windows for ``target``; entry i is in window i modulo their number.
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
        maxima = padded.reshape(-1, windows).argmax(axis=0) * windows + np.arange(windows)
        shares.append(np.isin(best, maxima).mean())
    return float(np.mean(shares))


def compiled_bytes(size: int) -> int:
    """Returns the bytes of a TPU chip for the search of ``SEARCHED`` queries and its table."""
    chip = SingleDeviceSharding(slice_devices(SLICE)[0])
    queries = jax.ShapeDtypeStruct((SEARCHED, WIDTH), jnp.float32, sharding=chip)
    table = jax.ShapeDtypeStruct((size, WIDTH), jnp.float32, sharding=chip)
    exclude = jax.ShapeDtypeStruct((SEARCHED, 1), jnp.int32, sharding=chip)
    memory = top_k.lower(queries, table, NEIGHBORS, exclude, RECALL).compile().memory_analysis()
    return memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes


def _since(start: float) -> float:
    return time.perf_counter() - start


if __name__ == "__main__":
    _JSON = flags.DEFINE_string("json", "", "File for the figures; nothing is written if empty.")
    _ITEMS = flags.DEFINE_integer("items", 60_000, "Items of the catalog.", lower_bound=100)
    _USERS = flags.DEFINE_integer("users", 20_000, "Users of the fit range.", lower_bound=1_500)
    _CALLS = flags.DEFINE_integer("calls", 512, "Calls of each kind.", lower_bound=1)
    _ROWS = flags.DEFINE_integer("rows", 10_000_000, "Rows of the large table; 0 for none.")
    app.run(main)
