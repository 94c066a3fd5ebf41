"""Options of credit and exploration in a whole stage: they change it, and it resumes."""

import dataclasses

import pytest

from agenticrec_jax.training.groups import GroupWeighting


@pytest.fixture(scope="module")
def tree(pieces):
    packing = dataclasses.replace(pieces.stage.packing, token_advantages=True)
    stage = dataclasses.replace(
        pieces.stage, packing=packing, weighting=GroupWeighting(tree_values=True)
    )
    return dataclasses.replace(pieces, stage=stage)


def test_tree_values_change_the_update_and_not_the_rollouts(tree, single, tmp_path):
    """The first step has the same rewards and advantages of members, and another gradient."""
    (line,) = tree.run(tmp_path, steps=1).lines
    plain = single.lines[0]
    for name in ("reward", "advantage_spread", "groups_dropped", "entropy"):
        assert line[name] == pytest.approx(plain[name], rel=1e-6), name
    assert abs(line["gradient_norm"] - plain["gradient_norm"]) > 0.01 * plain["gradient_norm"]
