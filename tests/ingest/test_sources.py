import gzip
import json

from agenticrec_jax.data.formats.files import table_file
from agenticrec_jax.ingest.sources import columns_without_values
from agenticrec_jax.testing.errors import assert_names, refused


def test_columns_without_a_value_in_any_line_are_found(tmp_path):
    rows = [{"user": "a", "rating": None}, {"user": "b", "score": 0}, {"user": "c", "note": ""}]
    (tmp_path / "e.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n")
    file, tested = table_file(tmp_path / "e.jsonl"), ["score", "rating", "note", "absent"]
    assert columns_without_values(file, ["user", *tested], tested) == ["rating", "absent"]
    assert columns_without_values(file, ["user", *tested], []) == []


def test_no_more_of_a_file_is_read_than_it_takes(tmp_path, monkeypatch):
    monkeypatch.setattr("agenticrec_jax.data.formats.files.PIECE_BYTES", 2**12)
    rows = "".join(f'{{"a": {n**3 % 99991}}}\n' for n in range(5000))
    (tmp_path / "e.jsonl.gz").write_bytes(gzip.compress(rows.encode())[:-100])
    file = table_file(tmp_path / "e.jsonl.gz")
    assert columns_without_values(file, ["a", "b"], ["a"]) == []
    sentence = refused(columns_without_values, file, ["a", "b"], ["b"])
    assert_names(sentence, tmp_path / "e.jsonl.gz", "cannot be read to its end")
