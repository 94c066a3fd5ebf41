"""JSON that every reader takes: no NaN, no infinity, no half of a surrogate pair.

JSON has no number that is not finite, and UTF-8 has no half of a pair. Python writes them all the
same, and other readers stop there. Here such a number is null and such a half is U+FFFD.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import pydantic_core

_HALF = re.compile(r"[\ud800-\udfff]|\\ud[89a-f]")  # as it is, or as ``ensure_ascii`` escapes it


def dumps(value: Any, **options: Any) -> str:
    """Returns the JSON text of a value; options are those of ``json.dumps``.

    >>> dumps({"ndcg": float("nan"), "rows": (1.5, float("inf")), "title": "Pens \\ud83d"})
    '{"ndcg": null, "rows": [1.5, null], "title": "Pens \\\\ufffd"}'
    """
    try:
        text = json.dumps(value, allow_nan=False, **options)
    except (TypeError, ValueError):  # a mapping that is no dict, or a number that is not finite
        return json.dumps(_strict(value), allow_nan=False, **options)
    # An escaped pair is one character. It is written once more, with the same result.
    return json.dumps(_strict(value), allow_nan=False, **options) if _HALF.search(text) else text


def loads(text: str | bytes) -> Any:
    """Returns the value of a JSON text; what ``dumps`` would not write is refused.

    Raises:
      ValueError: the text is no JSON, is nested more than 200 deep, or has a number that is not
        finite or half of a surrogate pair; names the fault.
    """
    value = pydantic_core.from_json(text, allow_inf_nan=False)
    json.dumps(value, allow_nan=False)  # refuses 1e999, which is infinite
    return value


def without_halves(text: str) -> str:
    """Returns text with U+FFFD in place of each half of a surrogate pair."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _strict(value: Any) -> Any:
    if isinstance(value, str):
        return without_halves(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_strict(name): _strict(inner) for name, inner in value.items()}
    return [_strict(inner) for inner in value] if isinstance(value, list | tuple) else value
