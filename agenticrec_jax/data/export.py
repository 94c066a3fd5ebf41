"""A log written as files that ``read_log`` reads; the same log always gives the same bytes."""

import csv
import gzip
import io
import math
import os

from agenticrec_jax import strict_json
from agenticrec_jax.data.interactions import InteractionLog, Items
from agenticrec_jax.paths import Path, make_directory

INTERACTIONS_CSV = "interactions.csv.gz"
ITEMS_JSONL = "items.jsonl.gz"


def log_files(log: InteractionLog) -> dict[str, bytes]:
    """Returns the bytes of both files by name: events in log order, and items."""
    files = {INTERACTIONS_CSV: _events_csv(log), ITEMS_JSONL: _items_jsonl(log.items)}
    # mtime: without it the bytes would hold the time of day
    return {
        name: gzip.compress(text.encode(), compresslevel=9, mtime=0) for name, text in files.items()
    }


def write_log(log: InteractionLog, directory: str | os.PathLike) -> tuple[Path, Path]:
    """Writes the log's two files into a directory; returns their paths, interactions first."""
    directory = make_directory(directory)
    for name, data in log_files(log).items():
        (directory / name).write_bytes(data)
    return directory / INTERACTIONS_CSV, directory / ITEMS_JSONL


def _events_csv(log: InteractionLog) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("user_id", "item_id", "timestamp", "rating"))
    user_ids = (log.user_ids[user] for user in log.user.tolist())
    item_ids = (log.items.item_id[item] for item in log.item.tolist())
    ratings = ("" if math.isnan(rating) else f"{rating:g}" for rating in log.rating.tolist())
    writer.writerows(zip(user_ids, item_ids, log.time.tolist(), ratings, strict=True))
    return buffer.getvalue()


def _items_jsonl(items: Items) -> str:
    lines = []
    for code, item_id in enumerate(items.item_id):
        record = {
            "item_id": item_id,
            "title": items.title[code],
            "categories": list(items.categories[code]),
            "price": float(items.price[code]),
            "brand": items.brand[code],
            "average_rating": float(items.average_rating[code]),
            "description": items.description[code],
            "year": items.year[code],
        }
        known = {name: value for name, value in record.items() if _is_known(value)}
        lines.append(strict_json.dumps(known, ensure_ascii=False) + "\n")
    return "".join(lines)


def _is_known(value: object) -> bool:
    unknown = value is None or value == []
    return not unknown and not (isinstance(value, float) and math.isnan(value))
