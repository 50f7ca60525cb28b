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
        ("tpu7x:4x4x4", 1, 64, 16, 64),
        ("a100:8x4", 1, 32, 4, 8),
        ("b200:8x2", 1, 16, 2, 8),
        ("v6e-16", 2, 32, 8, 16),
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
    assert "h100, h200, tpu7x, v4, v5e, v5p, v6e" in str(one.value)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("v5litepod-1", "v5e:1x1"),
        ("v5litepod-8", "v5e:2x4"),
        ("v5litepod-16", "v5e:4x4"),
        ("v5litepod-256", "v5e:16x16"),
        ("v6e-16", "v6e:4x4"),
        ("v6e-32", "v6e:4x8"),
        ("v4-8", "v4:2x2x1"),
        ("v4-32", "v4:2x2x4"),
        ("v5p-64", "v5p:2x4x4"),
        ("v5p-128", "v5p:4x4x4"),
        ("v5p-1536", "v5p:8x8x12"),
        ("v5p-12288", "v5p:16x16x24"),
    ],
)
def test_a_clouds_name_is_the_slice_of_its_default_shape(name, shape):
    assert topology(name).name == shape


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("v6e-2", "v6e counts chips"),
        ("v5litepod-512", "v5litepod counts chips"),
        ("v5p-127", "v5p counts cores, two of a chip"),
        ("v5p-100", "v5p counts cores, two of a chip"),
        ("v9-8", "unknown chip 'v9-8'"),
    ],
)
def test_a_clouds_name_that_no_slice_has_is_refused(name, why):
    with pytest.raises(UserError, match=why):
        topology(name)


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
