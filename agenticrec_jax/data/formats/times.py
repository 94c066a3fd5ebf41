"""Times as people write them: unix seconds, or a date in ISO 8601."""

import numpy as np
import polars as pl
from jaxtyping import Bool, Float64

LATEST_TIME = 10**11  # unix seconds of the year 5138; larger numbers are milliseconds
_DATE = (
    r"^(?<day>[0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"(?:[T ]+(?<hour>[0-9]{2}):(?<minute>[0-9]{2})"
    r"(?::(?<second>[0-9]{2})(?<fraction>[.,][0-9]+)?)?"
    r"\s*(?<zone>[Zz]|UTC|GMT|[+-][0-9]{2}(?::?[0-5][0-9])?)?)?$"
)

_LIMITS = ((1, 12), (1, 31), (0, 23), (0, 59), (0, 59))  # month, day, hour, minute, second


def seconds(text: pl.Series) -> pl.Series:
    """Returns unix seconds as float64: of numbers themselves, of ISO 8601 dates, else null.

    A date that names no zone is in UTC. Each cell is read alone, so that it means the same in any
    order and beside any other. ``01/02/2021`` is no date here: it may be of January or February.
    Nor is one from the year 5138 on, such as ``9999-12-31`` for never: its seconds would be taken
    for milliseconds.

    Example:
      >>> seconds(pl.Series(["86400", "1970-01-02", "1970-01-02 02:00+02:00", "2/1/70"])).to_list()
      [86400.0, 86400.0, 86400.0, None]
    """
    text = text.str.strip_chars()
    numbers = text.cast(pl.Float64, strict=False)
    if numbers.null_count() == text.null_count():
        return numbers
    fields = text.str.extract_groups(_DATE).struct.unnest()
    midnight = fields["day"].str.to_date("%Y-%m-%d", strict=False).dt.epoch("s")
    hour, minute, second = (
        fields[name].cast(pl.Int64).fill_null(0) for name in ("hour", "minute", "second")
    )
    zone = fields["zone"].fill_null("")
    east = zone.str.slice(1, 2).cast(pl.Int64, strict=False).fill_null(0) * 60
    east += zone.str.slice(3).str.strip_prefix(":").cast(pl.Int64, strict=False).fill_null(0)
    east *= 1 - 2 * zone.str.starts_with("-").cast(pl.Int64)
    fraction = ("0" + fields["fraction"].str.replace(",", ".", literal=True)).cast(pl.Float64)
    time = midnight + (hour * 60 + minute - east) * 60 + second + fraction.fill_null(0)
    valid = (
        (time < LATEST_TIME) & (hour < 24) & (minute < 60) & (second < 60) & (east.abs() < 24 * 60)
    )
    return numbers.zip_with(numbers.is_not_null(), time.set(~valid, None))


def in_digits(times: Float64[np.ndarray, "E"]) -> Bool[np.ndarray, "E"]:
    """Returns a mask of the dates in digits alone, such as 20240331 or 20240331235959.

    As numbers these would be of August 1970 and, in milliseconds, of the year 2611. Other numbers
    of so many digits are rarely like a date: 4% of those between 19000101 and 20991231. So those
    that are like one are dates if they are at least half, whatever other times there are.

    Example:
      >>> in_digits(np.array([20240331, 20240401, 20249999, 1.7e9, 20240331235959])).tolist()
      [True, True, False, False, True]
    """
    dates = np.zeros(len(times), bool)
    for digits in (8, 10, 12, 14):  # to the day, hour, minute or second
        unit = 10 ** (digits - 8)
        rows = np.flatnonzero((times >= 19000000 * unit) & (times < 21000000 * unit))
        number = times[rows]
        like_date = number % 1 == 0
        for at, (lowest, highest) in zip(range(digits - 6, -1, -2), _LIMITS, strict=False):
            pair = number // 10**at % 100
            like_date &= (pair >= lowest) & (pair <= highest)
        if 2 * np.count_nonzero(like_date) >= len(rows):
            dates[rows[like_date]] = True
    return dates
