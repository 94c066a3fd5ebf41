"""Saved models: their files come back, and other ones are refused."""

import numpy as np
import pytest

from agenticrec_jax.data.splits import FitRange
from agenticrec_jax.sequential.model import user_states
from agenticrec_jax.sequential.sasrec import Sasrec
from agenticrec_jax.sequential.saving import load_model, save_model
from agenticrec_jax.testing.errors import assert_names, refused

IDS = [f"item {n}" for n in range(23)]


def test_a_saved_model_comes_back_with_its_range(model, tmp_path):
    save_model(tmp_path, model, IDS, FitRange(77, 5))
    for item_ids in (IDS, None):
        saved = load_model(tmp_path, Sasrec, item_ids)
        assert saved.fit_range == FitRange(77, 5)
        assert saved.model.config == model.config
        assert list(saved.item_ids) == IDS
        histories = [(1, 2), (3,)]
        np.testing.assert_array_equal(
            user_states(model, histories), user_states(saved.model, histories)
        )


def test_another_catalog_is_refused(model, tmp_path):
    save_model(tmp_path, model, IDS, FitRange(77, 5))
    swapped = [IDS[0], IDS[2], IDS[1], *IDS[3:]]
    sentence = refused(load_model, tmp_path, Sasrec, swapped)
    assert_names(sentence, tmp_path / "sasrec.json", "item 1:", "found 'item 1'", "'item 2'")
    sentence = refused(load_model, tmp_path, Sasrec, IDS[:-1])
    assert_names(sentence, tmp_path / "sasrec.json", "found 23", 22)


def test_a_directory_without_a_model_is_refused(tmp_path):
    assert_names(refused(load_model, tmp_path, Sasrec, []), tmp_path, "sasrec.json")


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("sasrec.json", b"{", "unreadable sasrec"),
        ("sasrec.json", b"{}", "sasrec.json: found no field 'config'"),
        ("sasrec.safetensors", b"123", "unreadable sasrec"),
    ],
)
def test_broken_files_are_refused(model, tmp_path, name, content, named):
    save_model(tmp_path, model, IDS, FitRange(77, 5))
    (tmp_path / name).write_bytes(content)
    assert_names(refused(load_model, tmp_path, Sasrec, IDS), tmp_path, named)
