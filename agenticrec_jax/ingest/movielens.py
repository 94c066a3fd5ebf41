"""MovieLens-1M as GroupLens publishes it.

``ml-1m.zip`` holds ``ml-1m/ratings.dat`` and ``ml-1m/movies.dat``, cells separated by ``::``,
movies in latin-1. The data may not be redistributed: https://grouplens.org/datasets/movielens/1m/.
"""

import os

from agenticrec_jax.data.formats.files import TableFile
from agenticrec_jax.ingest.catalog import ItemColumns
from agenticrec_jax.ingest.events import EventColumns
from agenticrec_jax.ingest.sources import RawLog
from agenticrec_jax.paths import Path, require_file

ADDRESS = "https://files.grouplens.org/datasets/movielens/ml-1m.zip"


def movielens_1m(path: str | os.PathLike) -> RawLog:
    """Returns the log of ``ml-1m.zip``, or of the archive in a directory.

    Raises:
      InputError: the archive is missing; the error says what to download.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "ml-1m.zip"
    require_file(path, f"{ADDRESS} downloaded there")
    layout = {"format": "csv", "separator": "::", "encoding": "latin-1"}
    ratings = ("user", "movie", "rating", "timestamp")
    movies = ("movie", "title", "genres")
    return RawLog(
        interactions=TableFile(path, **layout, header=ratings, member="ml-1m/ratings.dat"),
        event_columns=EventColumns("user", "movie", "timestamp", "rating"),
        items=TableFile(path, **layout, header=movies, member="ml-1m/movies.dat"),
        item_columns=ItemColumns("movie", ("title",), ("genres",), title_year=True),
    )
