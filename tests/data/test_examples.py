"""Candidate numbers count from 1 in the order shown."""

import dataclasses

import pytest

from agenticrec_jax.data.examples import RankingExample


def test_target_number_is_the_place_in_the_order_shown():
    example = RankingExample(9, 0, 9, 100, (1, 2), (30, 10, 20), 20, "test")
    assert example.target_number == 3
    assert example.candidates[example.target_number - 1] == example.target
    with pytest.raises(dataclasses.FrozenInstanceError):
        example.target = 10
