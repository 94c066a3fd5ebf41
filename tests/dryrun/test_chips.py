"""The roofline of chips, against times worked out by hand."""

import pytest

from agenticrec_jax.dryrun.chips import CHIPS, least_seconds
from agenticrec_jax.dryrun.cost import Cost, Traffic
from agenticrec_jax.dryrun.topology import slice_devices

V5E = "TPU v5 lite"


@pytest.mark.parametrize(
    "work,seconds",
    [
        (Cost(flops=197e12, bytes=1e9), 1.0),
        (Cost(flops=1e12, bytes=2 * 819e9), 2.0),
        (Cost(collectives={"all-reduce": Traffic(9, 500e9), "all-gather": Traffic(1, 100e9)}), 3.0),
        # What crosses slices is no traffic of the links.
        (
            Cost(
                flops=197e12,
                collectives={"all-reduce": Traffic(2, 412.5e9)},
                between_slices={"all-reduce": Traffic(1, 12.5e9)},
            ),
            4.0,
        ),
        (Cost(), 0.0),
    ],
)
def test_the_slowest_resource_bounds_the_time(work, seconds):
    assert least_seconds(work, V5E) == pytest.approx(seconds)


def test_of_an_unknown_chip_no_time_is_known():
    assert least_seconds(Cost(flops=1e12), "cpu") is None


@pytest.mark.peer
def test_rates_are_known_of_the_slices_that_configs_name():
    for name in ("v5e:2x2", "v5p:2x2x1", "v6e:2x2"):
        assert slice_devices(name)[0].device_kind in CHIPS
