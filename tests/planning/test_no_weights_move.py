"""TIES at 64B: the devices exchange counts and nothing else."""

import importlib.util

import pytest

from merging import planning
from merging.runtime import config as configs

# An int32 count for each of three trials and of the 64 layers of the largest leaf.
COUNTS = 4 * 3 * 64


def exchanged(topology, estimate_of):
    config = configs.load("configs/plan/palm_64b.py")
    where = planning.topology(topology)
    found = planning.plan(config, where, parts=["merge"])
    return estimate_of(found, "in-memory merge")


def assert_only_counts(estimate, compiler):
    assert estimate["source"].startswith(compiler)
    kinds = {one["kind"]: one for one in estimate["collectives"]}
    assert set(kinds) == {"all-reduce"}
    assert kinds["all-reduce"]["largest"] <= COUNTS
    # Of nine models, 125 GB each, a device sends a megabyte.
    assert kinds["all-reduce"]["sent"] < 2e6


@pytest.mark.long
def test_no_collective_moves_weights_on_eight_virtual_devices(estimate_of):
    assert_only_counts(exchanged("cpu:8", estimate_of), "jaxlib")


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="compiling for TPUs needs libtpu (the extra tpu)",
)
def test_no_collective_moves_weights_on_a_pod_slice(estimate_of):
    estimate = exchanged("v5p:4x4x8", estimate_of)
    assert_only_counts(estimate, "libtpu")
    memory = estimate["bytes_per_device"]
    assert memory["arguments"] == pytest.approx(9 * 62_495_662_080 * 2 / 128, rel=0.02)
    assert memory["outputs"] == 0
    assert memory["scratch"] < 10**6
    assert estimate["fits"] is True
