"""The tiny stage and its run on one device: what runs on meshes and processes are held against."""

import pytest

from agenticrec_jax.testing.stages import tiny_stage


@pytest.fixture(scope="session")
def pieces():
    return tiny_stage()


@pytest.fixture(scope="session")
def single(pieces, tmp_path_factory):
    return pieces.run(tmp_path_factory.mktemp("single"))
