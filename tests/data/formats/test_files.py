"""The first record of a CSV file, which may span lines."""

import gzip
import os
import time

import pytest

from agenticrec_jax.data.formats.blocks import read_blocks
from agenticrec_jax.data.formats.files import HEADER_BYTES, record_bytes, table_file
from agenticrec_jax.testing.errors import assert_names, refused


@pytest.mark.parametrize(
    ("header", "rest"),
    [
        ("a,b\n", "1,2\n"),
        ('a,5" b\n', '1,"2"\n'),
        ('a,"b\n""c"\n', '"1\n",2\n'),
        ("\n", "a\n"),
        ("é,b", ""),
        ('a,"b\n1,2\n', ""),
        ('"' + "x" * 2**18 + "\n", ""),
        ('a\t"b\nc"\n', "1\t2\n"),
    ],
)
def test_the_first_record_ends_with_its_line(header, rest):
    separator = "\t" if "\t" in header else ","
    assert record_bytes((header + rest).encode(), separator) == len(header.encode())


def test_the_first_record_is_found_in_linear_time():
    """Half a megabyte took seconds when every line was counted from the start."""
    piece = b'a,5" b\n' + b"1,2\n" * 2**17
    marked = b'"' + b"\n" * 2**17
    start = time.process_time()
    assert record_bytes(piece) == 7 and record_bytes(marked) == len(marked)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
@pytest.mark.parametrize("names", [["x"] * HEADER_BYTES, ["x" * 2 * HEADER_BYTES, "y\nz"]])
def test_a_header_may_be_long(tmp_path, suffix, names):
    separator = {"csv": ",", "tsv": "\t"}[suffix]
    rows = [[f'"{name}"' for name in [*names, "last"]], ["1"] * len(names) + ["2"]]
    path = tmp_path / f"t.{suffix}"
    path.write_text("".join(separator.join(row) + "\n" for row in rows))
    (block,) = read_blocks(table_file(path), {"last": "any"}, lambda row: None)
    assert block.frame["last"].to_list() == ["2"]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("user_id\n1\n".encode("utf-32"), "UTF-32"),
        ("user_id\n1\n".encode("utf-16"), "UTF-16"),
        (b"\0\0\xfe\xff" + "user_id\n".encode("utf-32-be"), "UTF-32"),
        (b"\xfe\xff" + "user_id\n".encode("utf-16-be"), "UTF-16"),
        (gzip.compress(b"user_id\n1\n", mtime=0), ".gz"),
        (b"PK\3\4 of a spreadsheet", "zip"),
    ],
)
@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_what_is_no_text_is_called_by_its_name(tmp_path, name, content, named):
    (tmp_path / name).write_bytes(content)
    file = table_file(tmp_path / name)
    sentence = refused(lambda: list(read_blocks(file, {"user_id": "any"}, lambda row: None)))
    assert_names(sentence, tmp_path / name, "line 1", named, "UTF-8")


def test_what_is_no_file_is_called_by_its_name(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "loop.csv").symlink_to(tmp_path / "loop.csv")
    (tmp_path / "gone.csv").symlink_to(tmp_path / "nowhere")
    for name, reason in {
        "folder.csv": "a directory",
        "pipe.csv": "a pipe",
        "loop.csv": "symbolic links",
        "gone.csv": "no such file",
        "none.csv": "no such file",
    }.items():
        assert_names(refused(table_file, tmp_path / name), tmp_path / name, reason, "a table")
