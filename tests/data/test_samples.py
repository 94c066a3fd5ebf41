"""The embedded samples: small, whole, with terms beside them, and nothing private in them."""

import hashlib
import re

import numpy as np
import pytest

from agenticrec_jax.data.samples import load_sample, sample_directory
from agenticrec_jax.testing.errors import assert_names, refused

LIMITS = {"office": 500_000, "synthetic": 100_000}


@pytest.mark.parametrize("name", LIMITS)
def test_size_checksums_and_source(name):
    files = sorted(sample_directory(name).iterdir())
    assert [path.name for path in files] == ["SOURCE.md", "interactions.csv.gz", "items.jsonl.gz"]
    assert sum(path.stat().st_size for path in files) < LIMITS[name]
    source = files[0].read_text()
    for path in files[1:]:
        assert f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" in source


def test_the_office_sample():
    log = load_sample("office")
    assert (len(log), log.num_users, log.num_items) == (21290, 3231, 3317)
    assert all(re.fullmatch(r"u\d{4}", user) for user in log.user_ids)
    assert set(log.items.description) == {None} and np.isnan(log.items.price).all()
    assert sum(brand is None for brand in log.items.brand) == 5
    instants = np.unique(np.stack([log.user, log.time]), axis=1, return_counts=True)[1]
    assert instants[instants > 1].sum() == 13729  # events that share their user's instant: 64%
    source = (sample_directory("office") / "SOURCE.md").read_text()
    for needed in ("Ni, Jiacheng Li, Julian McAuley", "EMNLP", "2019", "Research use only"):
        assert needed in source


def test_the_synthetic_sample():
    log = load_sample("synthetic")
    assert (log.num_users, log.num_items) == (800, 400)
    assert min(len(log.events_of(user)) for user in range(800)) >= 3


def test_an_unknown_sample_is_refused():
    assert_names(refused(load_sample, "movies"), "'movies'", *LIMITS)
