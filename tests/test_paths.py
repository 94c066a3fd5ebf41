"""Paths that a person gives; buckets on loopback have the same files as a disk."""

import gzip
import os
import pathlib
import re
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenticrec_jax import paths
from agenticrec_jax.bundled import ROOT
from agenticrec_jax.errors import InputError
from agenticrec_jax.paths import (
    Appender,
    absolute,
    as_path,
    glob,
    is_bucket,
    is_file,
    local_file,
    local_path,
    make_directory,
    read_range,
    whole_file,
    write_whole,
)
from agenticrec_jax.testing.errors import assert_names, refused


def test_the_home_is_put_in_place_of_its_sign(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for read in (as_path, local_path):
        assert read("~/log") == tmp_path / "log" and read("a~") == Path("a~")


@pytest.mark.parametrize(
    "address",
    ["s3://b/log", "file:///log", "gs:/b", "gs://", "gs://ab", "gs://bucket/a[1]", "/gs/bucket"],
)
def test_an_unknown_address_is_refused_before_a_directory_is_made(monkeypatch, tmp_path, address):
    monkeypatch.chdir(tmp_path)
    assert_names(refused(make_directory, address, "flag --output"), "flag --output", address)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["run", "~/run", "../me/run"])
def test_a_place_that_is_spelled_as_an_address_is_refused(monkeypatch, path):
    """A file system may be mounted there, and the working directory or the home lie in it."""
    monkeypatch.setenv("HOME", "/s3/me")
    monkeypatch.setattr(os, "getcwd", lambda: "/gs/me")
    place = {"run": "/gs/me/run", "~/run": "/s3/me/run", "../me/run": "/gs/me/run"}[path]
    assert_names(refused(as_path, path, "flag --workdir"), "flag --workdir", place)


def test_a_bucket_is_refused_where_a_file_has_to_be_here():
    assert_names(refused(local_path, "gs://bucket/a.py", "flag --wheel"), "flag --wheel", "gs://")


def test_a_bucket_without_its_extra_names_what_to_install(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    sentence = refused(make_directory, "gs://bucket/run", "flag --workdir")
    assert_names(sentence, "flag --workdir", "gs://bucket/run", "agenticrec-jax[gcs]")
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_place_of_a_directory_is_named(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        assert_names(refused(make_directory, path, "flag --workdir"), "flag --workdir", path)
    assert make_directory(tmp_path / "a[1]*" / "b").is_dir()


# Rooms and modules whose files are on this machine: the package's own, /proc, scratch, downloads.
ON_DISK = {
    *("paths", "bundled", "cli", "contrib", "dryrun", "testing"),
    *("data.loader", "data.samples", "runs.config", "runtime.provenance"),
}


def test_only_modules_of_files_on_this_machine_have_paths_of_their_own():
    """`pathlib.Path` makes a directory ``gs:`` of an address."""
    package = ROOT / "agenticrec_jax"
    own = re.compile(r"^(from pathlib import|import pathlib)", re.M)
    for file in package.rglob("*.py"):
        names = file.relative_to(package).with_suffix("").parts
        if own.search(file.read_text(encoding="utf-8")):
            assert names[0] in ON_DISK or ".".join(names) in ON_DISK, file


@given(st.text(max_size=300) | st.binary(max_size=20).map(os.fsdecode))
def test_any_text_is_a_path_or_one_sentence(text):
    try:
        path = as_path(text)
    except InputError as error:
        assert_names(error, "path", "expected")
        assert str(error).isprintable()
    else:
        assert os.fspath(path).encode() and (not is_file(path) or path.is_file())


@pytest.fixture(params=["disk", "bucket"])
def directory(request, tmp_path):
    """An empty directory on a disk, or in a bucket."""
    if request.param == "disk":
        return as_path(tmp_path)
    return as_path(f"{request.getfixturevalue('bucket')}/{tmp_path.name}")


def test_a_written_file_is_read_listed_and_replaced(directory):
    run = make_directory(directory / "run")
    assert glob(run, "*") == [] and not is_file(run / "a.txt")
    write_whole(run / "a.txt", "long ago")
    write_whole(run / "a.txt", "é")
    write_whole(make_directory(run / "b_a") / "c.json", b"{}")
    assert (run / "a.txt").read_text() == "é" and is_file(run / "a.txt")
    assert glob(run, "*.txt") == [run / "a.txt"] and glob(run, "*") == [run / "a.txt", run / "b_a"]
    assert glob(directory, "**/*_[ab]/*.json") == [run / "b_a" / "c.json"]
    assert glob(directory / "absent", "*") == []
    assert (run / "b_a").is_dir() and not is_file(run / "b_a") and absolute(run) == run


def test_a_file_that_is_not_finished_leaves_the_old_one(directory):
    write_whole(directory / "a.txt", "old")
    with pytest.raises(KeyboardInterrupt), whole_file(directory / "a.txt") as file:
        file.write_text("half")
        assert (directory / "a.txt").read_text() == "old"
        raise KeyboardInterrupt
    assert (directory / "a.txt").read_text() == "old"


def test_texts_are_appended_to_what_is_there(directory):
    write_whole(directory / "log", "0\n")
    with Appender(directory / "log") as log:
        for line in range(1, 5):
            log.write(f"{line}\n")
        log.flush()
        assert (directory / "log").read_text() == "0\n1\n2\n3\n4\n"
        log.write("5\n")
    assert (directory / "log").read_text() == "0\n1\n2\n3\n4\n5\n"


def test_a_library_gets_a_file_of_this_machine(directory):
    data = os.urandom(3000)
    write_whole(directory / "a.bin", data)
    copy = local_file(directory / "a.bin")
    assert isinstance(copy, pathlib.Path) and copy.read_bytes() == data
    assert local_file(directory / "a.bin") == copy
    write_whole(directory / "a.bin", b"new")
    assert local_file(directory / "a.bin").read_bytes() == b"new"


def test_a_range_of_an_object_is_read(bucket):
    path = as_path(f"{bucket}/ranges/a.bin")
    write_whole(path, b"0123456789")
    assert is_bucket(path) and read_range(path, 2, 5) == b"234"


def test_an_appended_object_is_uploaded_at_most_every_few_seconds(bucket, monkeypatch):
    """Google takes one write a second of an object."""
    path = as_path(f"{bucket}/appended/log")
    uploads = []
    monkeypatch.setattr(paths, "write_whole", lambda path, text: uploads.append(text))
    with Appender(path) as log:
        for _ in range(50):
            log.write("x")
    assert uploads == ["x", "x" * 50]


def test_a_bucket_that_is_not_there_is_one_sentence(bucket):
    sentence = refused(make_directory, "gs://another-bucket/run", "flag --workdir")
    assert_names(sentence, "flag --workdir", "gs://another-bucket/run")


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.parquet", "a.zip"])
def test_tables_are_read_from_a_bucket(bucket, name, tmp_path):
    import polars as pl

    from agenticrec_jax.data.formats.files import TableFile, column_names, table_file

    text = b"user_id,item_id\n1,2\n"
    file = tmp_path / name
    if name == "a.zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a.csv", text)
    elif name == "a.parquet":
        pl.read_csv(text).write_parquet(file)
    else:
        file.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    path = as_path(f"{bucket}/tables/{name}")
    write_whole(path, file.read_bytes())
    table = TableFile(path, "csv", member="a.csv") if name == "a.zip" else table_file(path)
    assert column_names(table) == ["user_id", "item_id"]
