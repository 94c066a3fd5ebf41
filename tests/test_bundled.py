"""Paths of files that ship with the package."""

import pytest

from agenticrec_jax.bundled import ROOT, resolve
from agenticrec_jax.testing.errors import assert_names, refused


def test_a_bundled_file_is_found_by_its_name_and_ones_own_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve("tools_data/tiny_policy") == ROOT / "tools_data" / "tiny_policy"
    (tmp_path / "tools_data" / "tiny_policy").mkdir(parents=True)
    assert resolve("tools_data/tiny_policy").resolve() == tmp_path / "tools_data" / "tiny_policy"


def test_the_home_directory_is_put_in_place_of_its_sign(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/absent") == tmp_path / "absent"


@pytest.mark.parametrize("path", ["s3://logs/policy", "~nobody-has-this-name/policy"])
def test_a_path_of_another_machine_is_refused(path):
    assert_names(refused(resolve, path), repr(path))
