"""Groups of collectives in XLA's notations, against groups written out by hand."""

import pytest

from agenticrec_jax.dryrun.groups import replica_groups

COLUMNS = [[0, 4], [1, 5], [2, 6], [3, 7]]


@pytest.mark.parametrize(
    "groups,expected",
    [
        ("{{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("{{0,1,2},{3}}", [[0, 1, 2], [3]]),
        ("[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("[4,2]<=[2,4]T(1,0)", COLUMNS),
        ("[4,2]<=[2,2,2]T(0,2,1)", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("mesh['a'=2,'b'=4] {'b'}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("mesh['a'=2,'b'=1,'c'=4] {'a'}", COLUMNS),
        ("mesh['a'=2,'b'=4] {'a','b'}", [list(range(8))]),
        ("mesh['a'=8] {'a':(1)4}", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("mesh['a'=8] {'a':(4)2}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("mesh['a'=2,'b'=2,'c'=2], device_ids=([2,2,2]T(0,2,1)) {'a'}", COLUMNS),
        ("mesh['a'=2,'b'=4], device_ids=([2,4]T(1,0)) {'a'}", [[0, 2], [4, 6], [1, 3], [5, 7]]),
        ("{}", [list(range(8))]),
    ],
)
def test_replica_groups_in_every_notation(groups, expected):
    found = replica_groups(f"channel_id=1, replica_groups={groups}, to_apply=%add", 8)
    assert sorted(found) == sorted(expected)


def test_pairs_of_a_permutation_are_groups():
    pairs = replica_groups("channel_id=1, source_target_pairs={{0,4},{4,0}}", 8)
    assert pairs == [[0, 4], [4, 0]]
