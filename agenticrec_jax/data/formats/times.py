"""Times as people write them: unix seconds, or a date in ISO 8601."""

import polars as pl

LATEST_TIME = 10**11  # unix seconds of the year 5138; larger numbers are milliseconds
_DATE = (
    r"^(?<day>[0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"(?:[T ]+(?<hour>[0-9]{2}):(?<minute>[0-9]{2})"
    r"(?::(?<second>[0-9]{2})(?<fraction>[.,][0-9]+)?)?"
    r"\s*(?<zone>[Zz]|UTC|GMT|[+-][0-9]{2}(?::?[0-5][0-9])?)?)?$"
)


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
