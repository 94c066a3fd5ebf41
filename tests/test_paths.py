"""Paths that a person gives."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenticrec_jax.errors import InputError
from agenticrec_jax.paths import is_file, local_path, make_directory
from agenticrec_jax.testing.errors import assert_names, refused


def test_the_home_is_put_in_place_of_its_sign(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/log") == tmp_path / "log" and local_path("a~") == Path("a~")


@pytest.mark.parametrize("address", ["gs://b/log", "s3://b", "file:///log", "gs:/b"])
def test_an_address_is_refused_before_a_directory_is_made(monkeypatch, tmp_path, address):
    monkeypatch.chdir(tmp_path)
    assert_names(refused(make_directory, address, "flag --output"), "flag --output", address)
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_place_of_a_directory_is_named(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        assert_names(refused(make_directory, path, "flag --workdir"), "flag --workdir", path)
    assert make_directory(tmp_path / "a[1]*" / "b").is_dir()


@given(st.text(max_size=300) | st.binary(max_size=20).map(os.fsdecode))
def test_any_text_is_a_path_or_one_sentence(text):
    try:
        path = local_path(text)
    except InputError as error:
        assert_names(error, "path", "expected")
        assert str(error).isprintable()
    else:
        assert os.fspath(path).encode() and (not is_file(path) or path.is_file())
