"""Writing a log in the layout that ``read_log`` reads, byte for byte the same every time."""

import csv
import gzip
import io
import json
import math
from pathlib import Path

from agenticrec_jax.data.interactions import InteractionLog, Items

INTERACTIONS_CSV = "interactions.csv.gz"
ITEMS_JSONL = "items.jsonl.gz"


def log_files(log: InteractionLog) -> dict[str, bytes]:
    """The bytes of interactions.csv.gz (events in log order) and items.jsonl.gz, by file name."""
    files = {INTERACTIONS_CSV: _events_csv(log), ITEMS_JSONL: _items_jsonl(log.items)}
    return {
        name: gzip.compress(text.encode(), compresslevel=9, mtime=0) for name, text in files.items()
    }


def write_log(log: InteractionLog, directory: str | Path) -> tuple[Path, Path]:
    """Writes the log's two files into a directory; returns their paths, interactions first."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in log_files(log).items():
        (directory / name).write_bytes(data)
    return directory / INTERACTIONS_CSV, directory / ITEMS_JSONL


def _events_csv(log: InteractionLog) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("user_id", "item_id", "timestamp", "rating"))
    columns = (log.user.tolist(), log.item.tolist(), log.time.tolist(), log.rating.tolist())
    for user, item, time, rating in zip(*columns, strict=True):
        cells = (log.user_ids[user], log.items.item_id[item], time, _number(rating))
        writer.writerow(cells)
    return buffer.getvalue()


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:g}"


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
        lines.append(json.dumps(known, ensure_ascii=False) + "\n")
    return "".join(lines)


def _is_known(value) -> bool:
    unknown = value is None or value == []
    return not unknown and not (isinstance(value, float) and math.isnan(value))
