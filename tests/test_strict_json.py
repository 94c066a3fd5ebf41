"""JSON that is written has no NaN and no half of a surrogate pair, whatever the values are."""

import ast
import json
import math
import pathlib
import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agenticrec_jax import strict_json

ROOT = pathlib.Path(__file__).parents[1]
# Calls of json.dumps that may write NaN, each with its reason.
ALLOWED = {
    "agenticrec_jax/parallel/multihost.py": "from process to process, where NaN has to stay NaN",
    "agenticrec_jax/data/formats/json_rows.py": "an error shows the cell as it is in the file",
    "experiments/benchmarks/peer_loop.py": "runs in environments without the package",
}
HALF = "\ud83d"
TEXTS = st.text(max_size=3) | st.text(st.characters(categories=["Cs", "Lu", "So"]), max_size=3)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(TEXTS, inner, max_size=3)
        | st.dictionaries(TEXTS, inner, max_size=3).map(types.MappingProxyType)
    ),
    max_leaves=8,
)


def refuse(constant):
    raise AssertionError(constant)


def readable(text):
    """The text as UTF-8 holds it: two halves in a row are one character, one half is none."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def same(value, read):
    if isinstance(value, float) and not math.isfinite(value):
        return read is None
    if isinstance(value, str):
        return read == readable(value)
    if isinstance(value, list | tuple):
        return len(value) == len(read) and all(map(same, value, read))
    if isinstance(value, dict | types.MappingProxyType):
        expected = {readable(key): inner for key, inner in value.items()}
        return expected.keys() == read.keys() and all(same(expected[k], read[k]) for k in read)
    return value == read and type(value) is type(read)


@settings(max_examples=100, deadline=None)
@given(VALUES, st.booleans())
def test_what_json_or_utf_8_does_not_have_is_replaced(value, ensure_ascii):
    text = strict_json.dumps(value, ensure_ascii=ensure_ascii)
    assert same(value, json.loads(text.encode(), parse_constant=refuse))
    assert "\\ud" not in text or ensure_ascii


@settings(max_examples=100, deadline=None)
@given(VALUES, st.booleans())
def test_other_values_are_written_as_json_dumps_does(value, ensure_ascii):
    strict = json.loads(strict_json.dumps(value))
    options = {"ensure_ascii": ensure_ascii, "indent": 1, "sort_keys": True}
    assert strict_json.dumps(strict, **options) == json.dumps(strict, **options)


@pytest.mark.parametrize(
    ("value", "expected"),
    [({math.nan: 1}, {"null": 1}), ({1.5: 2}, {"1.5": 2}), ({HALF: HALF}, {"\ufffd": "\ufffd"})],
)
def test_keys_are_written_likewise(value, expected):
    assert json.loads(strict_json.dumps(value), parse_constant=refuse) == expected


def writes_of(source):
    """Lines of a module that call ``json.dump`` or ``json.dumps`` without ``allow_nan=False``."""
    tree = ast.parse(source)
    modules = set()
    functions = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.asname or "json" for alias in node.names if alias.name == "json"}
        elif isinstance(node, ast.ImportFrom) and node.module == "json":
            functions |= {alias.asname or alias.name for alias in node.names}
    lines = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        module, _, name = called.rpartition(".")
        plain = module in modules and name in ("dump", "dumps", "JSONEncoder")
        if plain or called in functions - {"load", "loads", "JSONDecoder", "JSONDecodeError"}:
            options = {option.arg: ast.unparse(option.value) for option in node.keywords}
            if options.get("allow_nan") != "False":
                lines.append(node.lineno)
    return lines


def test_calls_that_may_write_nan_are_noticed():
    source = """
import json
import json as text
from json import dump as write, loads
json.dumps(1), json.dumps(1, allow_nan=False), json.dumps(1, allow_nan=True)
text.dump(1, file), json.loads(""), loads("")
write(1, file), strict_json.dumps(1)
print(json.JSONEncoder(indent=1))
"""
    assert sorted(writes_of(source)) == [5, 5, 6, 7, 8]


def test_whatever_writes_json_writes_it_strictly():
    """Where ``json`` itself is called, ``allow_nan=False`` stands beside it, or a reason above."""
    files = [
        path for part in ("agenticrec_jax", "experiments") for path in (ROOT / part).rglob("*.py")
    ]
    assert len(files) > 200
    loose = {
        str(path.relative_to(ROOT)): lines
        for path in files
        if (lines := writes_of(path.read_text(encoding="utf-8")))
    }
    assert {path: lines for path, lines in loose.items() if path not in ALLOWED} == {}


def test_what_is_read_is_what_may_be_written():
    assert strict_json.loads(b'{"a": [1, 2.5, null, "\\u00e9"]}') == {"a": [1, 2.5, None, "é"]}
    refused = [
        b"NaN",
        b"[-Infinity]",
        b"1e999",
        b'"\\ud83d"',
        b'"\xff"',
        b"[" * 10**5,
        b"",
        b"1" * 5000,
    ]
    for text in refused:
        with pytest.raises(ValueError):
            strict_json.loads(text)
