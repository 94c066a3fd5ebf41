"""The sample builder: names hidden, texts dropped, terms written, bytes repeatable."""

import gzip
import subprocess
import sys

import numpy as np
import pytest

from agenticrec_jax.data.export import ITEMS_JSONL, write_log
from agenticrec_jax.data.interactions import make_items, make_log, read_log
from agenticrec_jax.data.samples import sample_directory
from agenticrec_jax.testing.errors import assert_names, refused
from tools_data import build_sample


@pytest.fixture
def source(tmp_path):
    items = make_items(
        ["B1", "B2"],
        ["Pen", "Ink"],
        brand=["Acme", None],
        categories=[("Office",), ("Office",)],
        price=[2.0, np.nan],
        description=["secret text", None],
    )
    users = [f"REAL{n % 20:02d}" for n in range(60)]
    log = make_log(users, np.arange(60) % 2, np.arange(60) // 20, np.arange(60) % 5, items=items)
    write_log(log, tmp_path / "raw")
    return tmp_path / "raw", log


def test_users_are_renamed_in_a_shuffled_order_and_texts_dropped(source, tmp_path):
    directory, raw = source
    built = build_sample.build(str(directory), tmp_path / "out", seed=4)
    assert sorted(built.user_ids) == [f"u{n:04d}" for n in range(1, 21)]
    files = sorted((tmp_path / "out").iterdir())
    texts = [gzip.decompress(p.read_bytes()) for p in files if p.suffix == ".gz"]
    assert not any(word in text for text in texts for word in (b"REAL", b"secret", b"price"))
    back = read_log(*[path for path in files if path.suffix == ".gz"])
    assert back.items.brand == ("Acme", None) and back.items.title == ("Pen", "Ink")
    # Every user keeps his events in their order; nobody keeps his place.
    rows = [
        sorted(
            tuple(zip(x.item[e].tolist(), x.time[e].tolist(), x.rating[e].tolist(), strict=True))
            for e in map(x.events_of, range(20))
        )
        for x in (raw, back)
    ]
    assert rows[0] == rows[1]
    first = [
        [x.events_of(x.user_code[name])[0] for name in sorted(x.user_ids)] for x in (raw, back)
    ]
    assert not np.array_equal(raw.rating[first[0]], back.rating[first[1]])


def test_the_same_source_gives_the_same_bytes(source, tmp_path):
    build_sample.build(str(source[0]), tmp_path / "one", seed=4)
    build_sample.build(str(source[0]), tmp_path / "two", seed=4)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    other = build_sample.build(str(source[0]), tmp_path / "three", seed=5)
    assert other.fingerprint != read_log(*sorted((tmp_path / "one").glob("*.gz"))).fingerprint


def test_a_sample_that_is_too_large_is_refused_before_anything_is_written(
    source, tmp_path, monkeypatch
):
    monkeypatch.setattr(build_sample, "OFFICE_LIMIT", 100)
    sentence = refused(build_sample.build, str(source[0]), tmp_path / "out", seed=4)
    assert_names(sentence, source[0], "at most 100")
    assert not (tmp_path / "out").exists()


def test_the_committed_synthetic_sample_is_what_the_builder_makes(tmp_path):
    build_sample.build("synthetic", tmp_path, seed=2018)
    for path in tmp_path.glob("*.gz"):
        committed = (sample_directory("synthetic") / path.name).read_bytes()
        assert gzip.decompress(path.read_bytes()) == gzip.decompress(committed)
    assert (tmp_path / ITEMS_JSONL).is_file()


def test_bad_source_ends_with_one_sentence_and_status_2(tmp_path):
    command = [sys.executable, "-m", "tools_data.build_sample", f"--source={tmp_path}/none"]
    done = subprocess.run(
        [*command, f"--output={tmp_path}/out"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert_names(done.stderr, tmp_path / "none" / "items.jsonl.gz", "no such file")
    assert not (tmp_path / "out").exists()
