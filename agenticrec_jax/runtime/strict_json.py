"""JSON without NaN: a number that is not finite is written as null.

JSON has no NaN and no infinity. Python writes them all the same, and other readers stop there.
"""

import json
import math
from collections.abc import Mapping
from typing import Any


def dumps(value: Any, **options: Any) -> str:
    """Returns the JSON text of a value; options are those of ``json.dumps``.

    >>> dumps({"ndcg": float("nan"), "rows": (1.5, float("inf"))})
    '{"ndcg": null, "rows": [1.5, null]}'
    """
    return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value
