"""The first record of a CSV file, which may span lines."""

import time

import pytest

from agenticrec_jax.data.formats.files import record_bytes


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
    ],
)
def test_the_first_record_ends_with_its_line(header, rest):
    assert record_bytes((header + rest).encode()) == len(header.encode())


def test_the_first_record_is_found_in_linear_time():
    """Half a megabyte took seconds when every line was counted from the start."""
    piece = b'a,5" b\n' + b"1,2\n" * 2**17
    marked = b'"' + b"\n" * 2**17
    start = time.process_time()
    assert record_bytes(piece) == 7 and record_bytes(marked) == len(marked)
    assert time.process_time() - start < 1
