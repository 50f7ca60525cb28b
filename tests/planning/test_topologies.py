"""Topologies: what their names mean, and wrong ones with what is right."""

import pytest

from merging.planning import topology
from merging.runtime.errors import UserError


@pytest.mark.parametrize(
    ("name", "slices", "devices", "hosts", "domain"),
    [
        ("v5p:4x4x8", 1, 128, 32, 128),
        ("v5e:16x16", 2, 512, 128, 256),
        ("v5e:2x2", 1, 4, 1, 4),
        ("v6e:1x1", 1, 1, 1, 1),
        ("h200:8x16", 1, 128, 16, 8),
        ("cpu:8", 1, 8, 1, 8),
    ],
)
def test_a_name_says_devices_hosts_and_what_needs_no_network(
    name, slices, devices, hosts, domain
):
    found = topology(name, slices)
    assert (found.devices, found.hosts, found.domain) == (devices, hosts, domain)


def test_an_unknown_chip_gets_the_nearest_and_all():
    with pytest.raises(UserError, match="unknown chip 'v5q': did you mean v5p") as one:
        topology("v5q:4x4x4")
    assert "h100, h200, v4, v5e, v5p, v6e" in str(one.value)


@pytest.mark.parametrize(
    ("name", "slices", "why"),
    [
        ("v5p", 1, "takes a shape such as v5p:4x4x8"),
        ("v5p:4x4x8x2", 1, "a grid of 2 or 3 dimensions"),
        ("v5e:4x4x4", 1, "a grid of 2 dimensions"),
        ("v5p:3x4x4", 1, "must be even"),
        ("v5e:32x16", 1, "at most 256 chips"),
        ("h100:16x2", 1, "at most 8"),
        ("h100:8x2", 2, "only TPUs come in slices"),
        ("v5p:4x4x4", 0, "0 slices"),
        ("cpu:0", 1, "takes a shape"),
        ("v5p:4xx4", 1, "takes a shape"),
    ],
)
def test_a_shape_that_does_not_exist_says_why_and_lists_examples(name, slices, why):
    with pytest.raises(UserError, match=why) as caught:
        topology(name, slices)
    assert "v4:4x4x4, v5e:8x16, v5p:4x4x8, v6e:16x16" in str(caught.value)
