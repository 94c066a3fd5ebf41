"""Builds an embedded sample: a log in the package's own layout, with its source and terms.

The source is a directory with the 2018 Amazon Office Products log as ``interactions.csv.gz`` and
``items.jsonl.gz``, or the generator of synthetic logs, for those who may not use the former:

    python -m tools_data.build_sample --source=DIR --output=tools_data/office_sample
    python -m tools_data.build_sample --source=synthetic --output=tools_data/synthetic_sample

The same source gives the same bytes. Users are renamed in a shuffled order. Titles, brands and
categories stay; descriptions are dropped.
"""

import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from absl import app, flags

from agenticrec_jax.data.export import INTERACTIONS_CSV, ITEMS_JSONL, log_files
from agenticrec_jax.data.interactions import InteractionLog, make_items, make_log, read_log
from agenticrec_jax.errors import InputError
from agenticrec_jax.testing.synthetic import synthetic_log

SYNTHETIC = "synthetic"
OFFICE_LIMIT = 500_000
SYNTHETIC_LIMIT = 100_000

_SOURCE = flags.DEFINE_string(
    "source", None, "directory of the raw log, or 'synthetic'", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "directory to write", required=True)
_SEED = flags.DEFINE_integer("seed", 2018, "seed of user names, or of the synthetic log")

_OFFICE_TEXT = """# Office sample

{users:,} users, {items:,} items, {events:,} interactions with ratings and day timestamps
({first} to {last}), of the Amazon Office Products category.

## Source

Amazon Review Data (2018). Please cite:

> Jianmo Ni, Jiacheng Li, Julian McAuley. Justifying recommendations using distantly-labeled reviews
> and fine-grained aspects. Empirical Methods in Natural Language Processing (EMNLP), 2019.

Interactions were rebuilt from the validation and test splits that the ReRe project publishes
(github.com/sober-clever/ReRe, commit 7d69eeef92f6,
`data/Amazon/{{valid,test}}/Office_Products_5_2016-10-2018-11.csv`), brands from the item index of
MiniOneRec (github.com/AkaliKong/MiniOneRec, commit 81b4ba9811cf,
`data/Amazon/index/Office_Products.item.json`), joined on exact title.

## Terms

**Research use only.** The release carries no open license: it is offered for research with a
request to cite, and product texts remain Amazon's and their authors'. This folder is not covered by
the project's own license. Whoever may not use it finds a made-up log of the same layout in
`../synthetic_sample`.

## Filtering

- 5-core of October 2016 to November 2018, then only the users active in the last fifth (by time) of
  the interactions, each with the events that those rows hold (history of at most ten items and the
  target). For about 200 users the oldest events may be missing, and a few users and items have
  fewer than five interactions.
- Users are renamed u0001, u0002, .. in a shuffled order; the original ids are not here.
- Item ids, titles, brands and the main category stay. Descriptions are left out; the source has no
  prices or average ratings. Otherwise the whole log is here.
- Made by `python -m tools_data.build_sample --source=DIR --output=DIR --seed={seed}`.
"""

_SYNTHETIC_TEXT = """# Synthetic sample

{users:,} made-up users, {items:,} made-up items, {events:,} made-up interactions
({first} to {last}). Names and brands are invented; any likeness is chance.

Brand loyalty, popularity and item-to-item sequence each carry signal; the generator is
`agenticrec_jax/testing/synthetic.py`. It stands in where the real sample beside it may not be used,
under the project's own license. Numbers measured on it say nothing about real shops.

Made by `python -m tools_data.build_sample --source=synthetic --output=DIR --seed={seed}`.
"""


def build(source: str, output: Path, seed: int) -> InteractionLog:
    """Writes the sample of ``source`` into ``output`` and returns its log.

    Raises:
      InputError: the source directory cannot be read, or the sample would be too large.
    """
    if source == SYNTHETIC:
        log = synthetic_log(seed=seed)
        text = _SYNTHETIC_TEXT
        limit = SYNTHETIC_LIMIT
    else:
        raw = read_log(Path(source) / INTERACTIONS_CSV, Path(source) / ITEMS_JSONL)
        log = rename_users(without_texts(raw), seed)
        text = _OFFICE_TEXT
        limit = OFFICE_LIMIT
    files = log_files(log)
    size = sum(map(len, files.values()))
    if size > limit:
        raise InputError(f"{source}: found {size} bytes of packed data, expected at most {limit}")
    output.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (output / name).write_bytes(data)
    (output / "SOURCE.md").write_text(_describe(text, log, files, seed), encoding="utf-8")
    return log


def without_texts(log: InteractionLog) -> InteractionLog:
    """Returns the log with ids, titles, brands and categories of its items and no other column."""
    items = log.items
    return replace(log, items=make_items(items.item_id, items.title, items.brand, items.categories))


def rename_users(log: InteractionLog, seed: int) -> InteractionLog:
    """Returns the log with users named u0001, u0002, .. in an order shuffled by ``seed``.

    Events of one time are ordered by the new name, so that the order of the rows does not reveal
    the old one. The order of each user's events stays.
    """
    number = np.random.default_rng(seed).permutation(log.num_users)
    order = np.lexsort((np.arange(len(log)), number[log.user], log.time))
    names = [f"u{number[user] + 1:04d}" for user in log.user[order]]
    return make_log(names, log.item[order], log.time[order], log.rating[order], items=log.items)


def _describe(text: str, log: InteractionLog, files: dict[str, bytes], seed: int) -> str:
    days = log.time[[0, -1]].astype("datetime64[s]").astype("datetime64[D]")
    body = text.format(
        users=log.num_users,
        items=log.num_items,
        events=len(log),
        first=days[0],
        last=days[1],
        seed=seed,
    )
    sums = [f"{hashlib.sha256(data).hexdigest()}  {name}" for name, data in files.items()]
    return body + "\n## Checksums (sha256)\n\n" + "".join(f"    {line}\n" for line in sums)


def main(argv) -> None:
    del argv
    try:
        log = build(_SOURCE.value, Path(_OUTPUT.value), _SEED.value)
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(f"{_OUTPUT.value}: {len(log)} interactions, fingerprint {log.fingerprint}")


if __name__ == "__main__":
    app.run(main)
