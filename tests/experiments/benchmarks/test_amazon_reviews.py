"""Synthetic reviews: the fields of the release, the planted rows, and equal files of a seed."""

import gzip
import json
import math
from collections import Counter

from agenticrec_jax.data.formats.json_rows import INVALID_JSON
from agenticrec_jax.ingest import catalog, events
from agenticrec_jax.ingest import prepare as preparation
from experiments.benchmarks.amazon_reviews import Size, write_reviews

REVIEW = (
    *("rating", "title", "text", "images", "asin", "parent_asin", "user_id", "timestamp"),
    *("helpful_vote", "verified_purchase"),
)
ITEM = (
    *("main_category", "title", "average_rating", "rating_number", "features", "description"),
    *("price", "images", "videos", "store", "categories", "details", "parent_asin"),
    "bought_together",
)


def lines(path):
    return gzip.decompress(path.read_bytes()).splitlines()


def reason(line, listed):
    """Returns the fault of a review, without the package's code; None if there is none."""
    try:
        row = json.loads(line)
    except ValueError:
        return INVALID_JSON
    assert tuple(row) == REVIEW
    if not row["user_id"]:
        return events.NO_USER
    if not row["parent_asin"]:
        return events.NO_ITEM
    if row["timestamp"] < 0:
        return events.NEGATIVE_TIME
    if row["timestamp"] < 10**11:
        return events.SECONDS
    if math.isnan(row["rating"]):
        return events.NO_RATING
    return None if row["parent_asin"] in listed else preparation.UNKNOWN_ITEM


def test_every_planted_row_is_there_and_no_other(tmp_path):
    planted = write_reviews(tmp_path, Size.of(6_000), seed=3)
    items = [json.loads(line) for line in lines(tmp_path / "meta_Synthetic.jsonl.gz")]
    assert {tuple(item) for item in items} == {ITEM}
    repeated = Counter(item["parent_asin"] for item in items)
    faults = Counter(
        wrong
        for line in lines(tmp_path / "Synthetic.jsonl.gz")
        if (wrong := reason(line, repeated))
    )
    faults[catalog.REPEATED] = sum(repeated.values()) - len(repeated)
    assert faults == planted and len(planted) == 8


def test_the_same_seed_makes_the_same_reviews_of_skewed_users_and_items(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        write_reviews(tmp_path / name, Size(9_000, 3_000, 700), seed)
    a, b, c = (lines(tmp_path / name / "Synthetic.jsonl.gz") for name in "abc")
    assert a == b and a != c and len(a) == 9_000
    bought = Counter(line.split(b'"parent_asin":"')[-1][:10] for line in a)
    most = bought.most_common(35)  # a twentieth of the items
    assert sum(count for _, count in most) > 0.15 * len(a)
