"""Candidate lists: the law they are drawn by, the frozen file, and what is refused on reading."""

import gzip
import hashlib
import json
from collections import Counter

import numpy as np
import pytest

from agenticrec_jax.data.candidates import (
    candidate_hash,
    draw_candidates,
    draw_split_candidates,
    read_candidates,
    read_protocol,
    write_candidates,
)
from agenticrec_jax.data.interactions import make_items, make_log
from agenticrec_jax.data.samples import load_sample
from agenticrec_jax.data.splits import chronological_splits, prediction_samples
from agenticrec_jax.testing.errors import assert_names, refused


@pytest.fixture(scope="module")
def log():
    return load_sample("synthetic")


@pytest.fixture(scope="module")
def office():
    return load_sample("office")


@pytest.fixture(scope="module")
def examples(log):
    return draw_split_candidates(log, chronological_splits(prediction_samples(log)), seed=3)


def test_the_law_of_the_draw(office):
    samples = chronological_splits(prediction_samples(office)).test
    examples = draw_candidates(office, samples, seed=11, split="test")
    whole = [set(office.item[office.events_of(user)]) for user in range(office.num_users)]
    for sample, example in zip(samples, examples, strict=True):
        assert len(set(example.candidates)) == 20 and example.target == sample.target
        assert whole[sample.user] & set(example.candidates) == {sample.target}
        titles = {office.items.title[item].casefold().strip() for item in example.candidates}
        assert len(titles) == 20
        assert example.history == sample.history and example.split == "test"
    # Targets stand anywhere: chi-square with 19 degrees of freedom, .9999 quantile 50.8.
    seen = np.bincount([example.target_number for example in examples], minlength=21)[1:]
    mean = len(examples) / 20
    assert ((seen - mean) ** 2 / mean).sum() < 50.8


def test_negatives_are_uniform_over_the_items_allowed():
    titles = [f"T{n}" for n in range(12)]
    items = make_items([f"i{n}" for n in range(12)], titles)
    rows = [("a", n % 3, n) for n in range(4000)] + [("b", n, 9999) for n in range(3, 12)]
    user, item, time = zip(*rows, strict=True)
    log = make_log(user, item, np.array(time), items=items)
    samples = [s for s in prediction_samples(log) if log.user_ids[s.user] == "a"]
    counts = Counter(
        item
        for example in draw_candidates(log, samples, 4, seed=5, split="x")
        for item in example.candidates
        if item != example.target
    )
    assert set(counts) == set(range(3, 12))
    mean = len(samples) * 4 / 9
    # Without replacement the spread is below the multinomial's; .9999 quantile at 8 is 31.8.
    assert sum((count - mean) ** 2 / mean for count in counts.values()) < 31.8


def test_a_draw_depends_on_seed_and_position_alone(log):
    samples = prediction_samples(log)
    alone = draw_candidates(log, samples[40:41], seed=1, split="x")
    among = draw_candidates(log, samples[30:50][::-1], seed=1, split="x")
    assert alone[0] == among[9]
    other = draw_candidates(log, samples[40:41], seed=2, split="x")
    assert other[0].candidates != alone[0].candidates
    assert set(other[0].candidates) != set(alone[0].candidates)


def test_no_two_candidates_share_a_title():
    titles = ["Pen", " pen", "PEN ", "Ink", "ink", "Pad", "Box  A", "box a", "Cup"]
    items = make_items([str(n) for n in range(9)], titles)
    log = make_log(["a", "a"], [8, 0], np.array([1, 2]), items=items)
    sample = prediction_samples(log)
    for seed in range(40):
        example = draw_candidates(log, sample, 3, seed=seed, split="x")[0]
        chosen = sorted(" ".join(titles[item].lower().split()) for item in example.candidates)
        assert chosen == ["box a", "ink", "pad", "pen"]
        assert not {1, 2} & set(example.candidates)
    sentence = refused(draw_candidates, log, sample, 4, seed=0, split="x")
    assert_names(sentence, "user 'a'", "3 items", "expected 4")


@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz"])
def test_the_file_reads_back_and_its_hash_is_of_its_bytes(log, examples, tmp_path, name):
    path = tmp_path / name
    digest = write_candidates(path, log, examples, seed=3)
    assert read_candidates(path, log) == examples
    assert digest == candidate_hash(path) == hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    first = path.read_bytes()
    assert write_candidates(path, log, examples, seed=3) == digest and path.read_bytes() == first
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    assert write_candidates(path, log, examples[:-1], seed=3) != digest


def test_the_header_is_the_protocol_and_ids_are_text(log, examples, tmp_path):
    path = tmp_path / "c.jsonl"
    write_candidates(path, log, examples, seed=3)
    assert read_protocol(path) == {
        "format": "agenticrec-candidates",
        "version": 1,
        "seed": 3,
        "negatives": 19,
        "counts": {"policy": 770, "valid": 481, "test": 481},
        "log": log.fingerprint,
    }
    record = json.loads(path.read_text().splitlines()[1])
    assert record["candidates"][examples[0].target_number - 1] == record["target"]
    assert all(isinstance(item, str) and item.startswith("i") for item in record["candidates"])


def _edit(name, change):
    def edit(record):
        record[name] = change(record)
        return record

    return edit


def _swap_last(item):
    return _edit("candidates", lambda r: [c for c in r["candidates"] if c != r["target"]] + [item])


FAULTS = {
    "unknown item": (
        _edit("candidates", lambda r: ["nope"] + r["candidates"][1:]),
        "field candidates",
        "'nope'",
    ),
    "item of another type": (
        _edit("candidates", lambda r: [5] + r["candidates"][1:]),
        "field candidates",
        "found 5",
    ),
    "wrong count": (
        _edit("candidates", lambda r: r["candidates"][:-1]),
        "field candidates",
        "found 19",
        "20 items",
    ),
    "duplicate": (
        _edit("candidates", lambda r: [r["candidates"][1]] + r["candidates"][1:]),
        "field candidates",
        "each item and title once",
    ),
    "missing target": (
        lambda r: {k: v for k, v in r.items() if k != "target"},
        "field target",
        "None",
    ),
    "target not among them": (
        _edit("target", lambda r: r["history"][0]),
        "field target",
        "one of the candidates",
    ),
    "another candidate as target": (
        _edit("target", lambda r: next(c for c in r["candidates"] if c != r["target"])),
        "field target",
        "the item of event",
    ),
    "unknown history": (_edit("history", lambda r: ["gone"]), "field history", "'gone'"),
    "unknown user": (_edit("user", lambda r: "nobody"), "field user", "'nobody'"),
    "no such event": (_edit("position", lambda r: 10**9), "field position", "1000000000"),
    "another event": (_edit("position", lambda r: 0), "field position", "found 0"),
    "time as text": (_edit("time", lambda r: "now"), "field time", "'now'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_line_is_refused_with_file_line_and_field(log, examples, tmp_path, fault):
    change, *named = FAULTS[fault]
    path = tmp_path / "c.jsonl"
    write_candidates(path, log, examples[:5], seed=3)
    lines = path.read_text().splitlines()
    lines[3] = json.dumps(change(json.loads(lines[3])))
    path.write_text("\n".join(lines) + "\n")
    assert_names(refused(read_candidates, path, log), f"{path}, line 4", *named)


def test_faults_of_the_whole_file(log, office, examples, tmp_path):
    path = tmp_path / "c.jsonl"
    assert_names(refused(read_candidates, path, log), path, "no such file")
    path.write_text("")
    assert_names(refused(read_candidates, path, log), f"{path}, line 1", "invalid JSON")
    path.write_text('{"format": "else", "version": 1}\n')
    assert_names(refused(read_candidates, path, log), f"{path}, line 1, field format", "'else'")
    write_candidates(path, log, examples[:5], seed=3)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]) + "\n")
    assert_names(refused(read_candidates, path, log), f"{path}, line 1, field counts")
    path.write_text("\n".join(lines[:-1] + ["{broken"]) + "\n")
    assert_names(refused(read_candidates, path, log), f"{path}, line 6", "invalid JSON")
    zipped = tmp_path / "c.jsonl.gz"
    zipped.write_bytes(gzip.compress(b"x")[:-4])
    assert_names(refused(read_candidates, zipped, log), zipped, "cannot be read")


def test_a_file_drawn_for_another_log_is_refused(log, examples, tmp_path):
    path = tmp_path / "c.jsonl"
    write_candidates(path, log, examples[:5], seed=3)
    longer = log.keep(np.arange(len(log)) < len(log) - 1)
    sentence = refused(read_candidates, path, longer)
    assert_names(sentence, f"{path}, line 1, field log", log.fingerprint, longer.fingerprint)
