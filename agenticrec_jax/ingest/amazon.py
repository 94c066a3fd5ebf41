"""The three releases of Amazon reviews as they are downloaded: 2023, 2018 and 2014.

Each has reviews as JSON lines, ratings alone as CSV, and metadata. The names of columns differ,
ratings of 2018 and 2014 have no header line, and the metadata of 2014 is a Python literal a line.
The mean ratings of the metadata are left out: they are of the day of the crawl, which is later than
the events that a policy predicts.

Sources of the layouts: https://amazon-reviews-2023.github.io/,
https://nijianmo.github.io/amazon/index.html, https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/.
"""

import os
from dataclasses import dataclass, replace

from agenticrec_jax.data.formats.files import TableFile
from agenticrec_jax.errors import InputError
from agenticrec_jax.ingest.catalog import ItemColumns
from agenticrec_jax.ingest.events import EventColumns
from agenticrec_jax.ingest.sources import RawLog
from agenticrec_jax.paths import Path, require_file

_MCAULEY = "https://mcauleylab.ucsd.edu/public_datasets/data"
_SNAP = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"


@dataclass(frozen=True)
class Release:
    """The layout of a release.

    Attributes:
      page: the page that describes it.
      ratings: names of CSV files, the preferred one first; ``{}`` is the category.
      ratings_header: column names of these files if they have no header line.
      reviews: names of files of JSON lines.
      metadata: names of files of items.
      metadata_format: a format of `TableFile`.
      fetch: addresses of a file of events and a file of items.
    """

    page: str
    ratings: tuple[str, ...]
    ratings_header: tuple[str, ...] | None
    ratings_columns: EventColumns
    reviews: tuple[str, ...]
    review_columns: EventColumns
    metadata: tuple[str, ...]
    metadata_format: str
    item_columns: ItemColumns
    fetch: tuple[str, str]


_HEADLESS = EventColumns("user", "item", "timestamp", "rating")
_REVIEWS = EventColumns("reviewerID", "asin", "unixReviewTime", "overall")

RELEASES = {
    "amazon2023": Release(
        page="https://amazon-reviews-2023.github.io/",
        ratings=("{}.csv.gz", "{}.csv"),
        ratings_header=None,
        ratings_columns=EventColumns("user_id", "parent_asin", "timestamp", "rating"),
        reviews=("{}.jsonl.gz", "{}.jsonl"),
        review_columns=EventColumns("user_id", "parent_asin", "timestamp", "rating"),
        metadata=("meta_{}.jsonl.gz", "meta_{}.jsonl"),
        metadata_format="json",
        item_columns=ItemColumns(
            item="parent_asin",
            title=("title",),
            categories=("categories", "main_category"),
            price=("price",),
            brand=("store",),
            description=("description", "features"),
            clean=True,
        ),
        fetch=(
            f"{_MCAULEY}/amazon_2023/benchmark/5core/rating_only/{{}}.csv.gz",
            f"{_MCAULEY}/amazon_2023/raw/meta_categories/meta_{{}}.jsonl.gz",
        ),
    ),
    "amazon2018": Release(
        page="https://nijianmo.github.io/amazon/index.html",
        ratings=("{}.csv", "{}.csv.gz"),
        ratings_header=("item", "user", "rating", "timestamp"),
        ratings_columns=_HEADLESS,
        reviews=("{}_5.json.gz", "{}_5.json", "{}.json.gz", "{}.json"),
        review_columns=_REVIEWS,
        metadata=("meta_{}.json.gz", "meta_{}.json"),
        metadata_format="json",
        item_columns=ItemColumns(
            item="asin",
            title=("title",),
            categories=("category", "main_cat"),
            price=("price",),
            brand=("brand",),
            description=("description", "feature"),
            clean=True,
        ),
        fetch=(
            f"{_MCAULEY}/amazon_v2/categoryFilesSmall/{{}}_5.json.gz",
            f"{_MCAULEY}/amazon_v2/metaFiles2/meta_{{}}.json.gz",
        ),
    ),
    "amazon2014": Release(
        page="https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html",
        ratings=("ratings_{}.csv", "ratings_{}.csv.gz"),
        ratings_header=("user", "item", "rating", "timestamp"),
        ratings_columns=_HEADLESS,
        reviews=(
            *("reviews_{}_5.json.gz", "reviews_{}_5.json"),
            *("reviews_{}.json.gz", "reviews_{}.json"),
        ),
        review_columns=_REVIEWS,
        metadata=("meta_{}.json.gz", "meta_{}.json"),
        metadata_format="literal",
        item_columns=ItemColumns(
            item="asin",
            title=("title",),
            categories=("categories",),
            price=("price",),
            brand=("brand",),
            description=("description",),
            clean=True,
        ),
        fetch=(f"{_SNAP}/reviews_{{}}_5.json.gz", f"{_SNAP}/meta_{{}}.json.gz"),
    ),
}


@dataclass(frozen=True)
class PaperCounts:
    """A row of AgenticRec's table of data sets (arXiv:2603.21613)."""

    users: int
    items: int
    interactions: int


PAPER_COUNTS = {
    "CDs_and_Vinyl": PaperCounts(5437, 8785, 13826),
    "Musical_Instruments": PaperCounts(7593, 5279, 15746),
    "Office_Products": PaperCounts(27130, 11511, 47333),
    "Video_Games": PaperCounts(6251, 3003, 11457),
}


def find_amazon(release: str, category: str, directory: str | os.PathLike) -> RawLog:
    """Returns the log of a category whose files were downloaded into a directory.

    Of the 2023 release the 5-core ``rating_only`` CSV is preferred to the reviews: the paper's data
    was most likely made of it.

    Raises:
      InputError: the files are missing; the error says which to download.
    """
    layout = RELEASES[release]
    directory = Path(directory)
    names = {"ratings": layout.ratings, "reviews": layout.reviews, "metadata": layout.metadata}
    order = ("ratings", "reviews") if release == "amazon2023" else ("reviews", "ratings")
    paths = {table: _first_file(directory, names[table], category) for table in names}
    interactions = next((paths[table] for table in order if paths[table]), None)
    if not interactions or not paths["metadata"]:
        wanted = " and ".join(address.format(category) for address in layout.fetch)
        raise InputError(
            f"{directory}: found no {release} files of category {category!r}, expected {wanted} "
            f"downloaded there (described at {layout.page})"
        )
    return amazon_log(release, interactions, paths["metadata"])


def _first_file(directory: Path, names: tuple[str, ...], category: str) -> Path | None:
    paths = [directory / name.format(category) for name in names]
    return next((path for path in paths if path.is_file()), None)


def amazon_log(
    release: str, interactions: str | os.PathLike, metadata: str | os.PathLike | None
) -> RawLog:
    """Returns the log of files of any name in the layout of a release.

    Args:
      interactions: ratings if the name ends in .csv or .csv.gz, else reviews.

    Raises:
      InputError: a file is missing.
    """
    layout = RELEASES[release]
    rated = Path(interactions).name.removesuffix(".gz").endswith(".csv")
    log = RawLog(
        interactions=_existing(interactions, "csv" if rated else "json"),
        event_columns=layout.ratings_columns if rated else layout.review_columns,
        items=_existing(metadata, layout.metadata_format) if metadata else None,
        item_columns=layout.item_columns,
        notes=("mean ratings of the metadata are left out: they are of the day of the crawl",),
    )
    if not rated:
        return log
    return replace(log, interactions=replace(log.interactions, header=layout.ratings_header))


def _existing(path: str | os.PathLike, file_format: str) -> TableFile:
    path = Path(path)
    require_file(path, "a table of Amazon reviews or metadata")
    return TableFile(path, file_format)
