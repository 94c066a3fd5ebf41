"""Writes synthetic files in the layout of Amazon Reviews 2023, of any size, with planted bad rows.

Each record has all fields of the release (https://amazon-reviews-2023.github.io/). Items follow a
Zipf law, most users have one or two reviews, and texts are short. Rows are generated and compressed
in blocks, so that only the ids of users and items grow with the size.
"""

import gzip
import io
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from agenticrec_jax.data.formats.json_rows import INVALID_JSON
from agenticrec_jax.ingest import catalog, events
from agenticrec_jax.ingest import prepare as preparation

BLOCK = 200_000  # rows generated at once
RARITY = 100_000  # rows per bad row of each kind
CATEGORY = "Synthetic"
_ALPHABET = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", np.uint8)
_FIRST = 1_262_304_000_000  # ms: January 2010
_LAST = 1_694_000_000_000  # ms: September 2023
_POOL = 20_000  # different texts


@dataclass(frozen=True)
class Size:
    """Number of rows; `of` takes the users and items per review of large categories."""

    reviews: int
    users: int
    items: int

    @classmethod
    def of(cls, reviews: int) -> "Size":
        return cls(reviews, max(reviews // 3, 100), max(reviews // 13, 50))


def write_reviews(directory: Path, size: Size, seed: int = 0) -> Counter:
    """Writes both files of the category ``Synthetic``; returns the count of bad rows by reason."""
    rng = np.random.default_rng(seed)
    users = _ids(rng, b"A", size.users, 28)
    items = _ids(rng, b"B0", size.items, 10)
    planted = Counter()
    reviews = _reviews(rng, size, users, items, planted)
    _write(directory / f"{CATEGORY}.jsonl.gz", reviews)
    _write(directory / f"meta_{CATEGORY}.jsonl.gz", _metadata(rng, items, planted))
    return planted


def _write(path: Path, pieces: Iterator[bytes]) -> None:
    """Writes concatenated gzip members; two are compressed while the next piece is generated."""
    with open(path, "wb") as file, ThreadPoolExecutor(2) as zipping:
        waiting = []
        for piece in pieces:
            waiting.append(zipping.submit(gzip.compress, piece, 1))
            if len(waiting) > 2:
                file.write(waiting.pop(0).result())
        for member in waiting:
            file.write(member.result())


def _ids(rng: np.random.Generator, prefix: bytes, count: int, length: int) -> pl.Series:
    """Draws ``count`` ids of ``length`` characters and leaves out repetitions."""
    rows = np.empty((count, length + 1), np.uint8)
    rows[:, : len(prefix)] = np.frombuffer(prefix, np.uint8)
    rows[:, len(prefix) : length] = _ALPHABET[
        rng.integers(0, len(_ALPHABET), (count, length - len(prefix)), np.uint8)
    ]
    rows[:, length] = ord("\n")
    read = pl.read_csv(io.BytesIO(rows.tobytes()), has_header=False, infer_schema=False)
    return read.to_series().unique(maintain_order=True)


def _skewed(rng: np.random.Generator, count: int, exponent: float, start: int) -> Callable:
    """Returns a sampler of codes below ``count`` with weights (rank + start) ** -exponent."""
    weight = (np.arange(count) + float(start)) ** -exponent
    bounds = np.cumsum(rng.permutation(weight))
    return lambda rows: np.searchsorted(bounds, rng.random(rows) * bounds[-1]).clip(max=count - 1)


def _texts(rng: np.random.Generator, shortest: int, longest: int) -> pl.Series:
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(rng.choice(letters, size)) for size in rng.integers(2, 10, 3000)]
    counts = rng.integers(shortest, longest + 1, _POOL)
    common = (rng.random(counts.sum()) ** 2 * len(words)).astype(int)
    pieces = np.split(common, np.cumsum(counts)[:-1])
    return pl.Series([" ".join(words[word] for word in piece).capitalize() for piece in pieces])


def _picked(rng: np.random.Generator, pool: pl.Series, rows: int) -> pl.Series:
    return pool.gather(rng.integers(0, len(pool), rows))


def _reviews(
    rng: np.random.Generator, size: Size, users: pl.Series, items: pl.Series, planted: Counter
) -> Iterator[bytes]:
    user = _skewed(rng, len(users), 0.7, 1000)
    item = _skewed(rng, len(items), 0.9, 30)
    titles = _texts(rng, 1, 6)
    texts = _texts(rng, 4, 40)
    address = "https://images-na.ssl-images-amazon.com/images/I/7{}.jpg"
    sizes = {f"{name}_image_url": address.format(name) for name in ("small", "medium", "large")}
    images = pl.Series([[{**sizes, "attachment_type": "IMAGE"}]] + [[]] * 19)
    for start in range(0, size.reviews, BLOCK):
        rows = min(BLOCK, size.reviews - start)
        item_ids = items.gather(item(rows))
        times = _FIRST + (_LAST - _FIRST) * np.sqrt(rng.random(rows))  # more every year
        frame = pl.DataFrame(
            {
                "rating": rng.choice(
                    [1.0, 2.0, 3.0, 4.0, 5.0], rows, p=[0.1, 0.05, 0.1, 0.15, 0.6]
                ),
                "title": _picked(rng, titles, rows),
                "text": _picked(rng, texts, rows),
                "images": _picked(rng, images, rows),
                "asin": item_ids,
                "parent_asin": item_ids,
                "user_id": users.gather(user(rows)),
                "timestamp": times.astype(np.int64),
                "helpful_vote": rng.geometric(0.5, rows) - 1,
                "verified_purchase": rng.random(rows) < 0.9,
            }
        )
        yield _with_bad_reviews(rng, frame, start, planted)


def _with_bad_reviews(
    rng: np.random.Generator, frame: pl.DataFrame, start: int, planted: Counter
) -> bytes:
    columns = {  # reason: the column, and its wrong value
        events.NO_USER: ("user_id", pl.lit(None)),
        events.NO_ITEM: ("parent_asin", pl.lit("")),
        events.NEGATIVE_TIME: ("timestamp", -pl.col("timestamp")),
        events.SECONDS: ("timestamp", pl.col("timestamp") // 1000),
        preparation.UNKNOWN_ITEM: ("parent_asin", pl.format("UNLISTED{}", "row")),
    }
    texts = {INVALID_JSON: _cut, events.NO_RATING: _unrated}
    count = max(frame.height // RARITY, 1)
    reasons = [*columns, *texts]
    chosen = rng.choice(frame.height, (len(reasons), count), replace=False)
    frame = frame.with_row_index("row", offset=start)
    for reason, rows in zip(columns, chosen, strict=False):
        name, wrong = columns[reason]
        planted_here = pl.col("row").is_in((rows + start).tolist())
        frame = frame.with_columns(
            pl.when(planted_here).then(wrong).otherwise(pl.col(name)).alias(name)
        )
    lines = frame.drop("row").write_ndjson().encode().splitlines(keepends=True)
    for reason, rows in zip(texts, chosen[len(columns) :], strict=True):
        for row in rows:
            lines[row] = texts[reason](lines[row])
    planted.update(dict.fromkeys(reasons, count))
    return b"".join(lines)


def _cut(line: bytes) -> bytes:
    return line[: len(line) // 2] + b"\n"


def _unrated(line: bytes) -> bytes:
    head, rest = line.split(b",", 1)
    return head.split(b":")[0] + b":NaN," + rest


def _metadata(rng: np.random.Generator, items: pl.Series, planted: Counter) -> Iterator[bytes]:
    titles = _texts(rng, 2, 22)
    texts = _texts(rng, 5, 30)
    stores = _texts(rng, 1, 2)
    paths = pl.Series([[CATEGORY, f"Group {n % 40}", f"Kind {n}"] for n in range(400)])
    address = "https://m.media-amazon.com/images/I/{}.jpg"
    sizes = {"thumb": address.format("t"), "large": address.format("l"), "variant": "MAIN"}
    images = pl.Series([[{**sizes, "hi_res": None}]])
    for start in range(0, len(items), BLOCK):
        block = items[start : start + BLOCK]
        rows = len(block)
        number = pl.Series(np.arange(start, start + rows)).cast(pl.String)
        price = pl.Series(rng.uniform(1, 99, rows).round(2)).set(
            pl.Series(rng.random(rows) < 0.3), None
        )
        frame = pl.DataFrame(
            {
                "main_category": pl.repeat(CATEGORY, rows, eager=True),
                "title": _picked(rng, titles, rows) + " " + number,
                "average_rating": rng.uniform(1, 5, rows).round(1),
                "rating_number": rng.geometric(0.01, rows),
                "features": _picked(rng, texts, rows).reshape((rows, 1)).arr.to_list(),
                "description": _picked(rng, texts, rows).reshape((rows, 1)).arr.to_list(),
                "price": price,
                "images": _picked(rng, images, rows),
                "videos": pl.repeat([], rows, dtype=pl.List(pl.String), eager=True),
                "store": _picked(rng, stores, rows),
                "categories": _picked(rng, paths, rows),
                "details": pl.DataFrame({"Brand": _picked(rng, stores, rows)}).to_struct(),
                "parent_asin": block,
                "bought_together": pl.repeat(None, rows, eager=True),
            }
        )
        lines = frame.write_ndjson().encode().splitlines(keepends=True)
        repeated = rng.choice(lines, max(rows // 1000, 1), replace=False).tolist()
        planted[catalog.REPEATED] += len(repeated)
        yield b"".join(lines + repeated)
