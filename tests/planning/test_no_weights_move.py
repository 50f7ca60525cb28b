"""TIES at 64B: the devices exchange counts and nothing else."""

import importlib.util

import pytest

from merging import planning as foresight
from merging.runtime import config as configs

# An int32 count for each of three trials and of the 64 layers of the largest leaf.
COUNTS = 4 * 3 * 64


def exchanged(topology, of_phase):
    config = configs.load("configs/plan/palm_64b.py")
    where = foresight.topology(topology)
    found = foresight.forecast(config, where, parts=["merge"])
    return of_phase(found, "resident merge")


def assert_only_counts(phase, compiler):
    assert phase["source"].startswith(compiler)
    kinds = {one["kind"]: one for one in phase["collectives"]}
    assert set(kinds) == {"all-reduce"}
    assert kinds["all-reduce"]["largest"] <= COUNTS
    # Of nine models, 125 GB each, a device sends a megabyte.
    assert kinds["all-reduce"]["sent"] < 2e6


def test_no_collective_moves_weights_on_eight_virtual_devices(of_phase):
    assert_only_counts(exchanged("cpu:8", of_phase), "jaxlib")


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="compiling for TPUs needs libtpu (the extra tpu)",
)
def test_no_collective_moves_weights_on_a_pod_slice(of_phase):
    phase = exchanged("v5p:4x4x8", of_phase)
    assert_only_counts(phase, "libtpu")
    memory = phase["bytes_per_device"]
    assert memory["arguments"] == pytest.approx(9 * 62_495_662_080 * 2 / 128, rel=0.02)
    assert memory["outputs"] == 0
    assert memory["scratch"] < 10**6
    assert phase["fits"] is True
