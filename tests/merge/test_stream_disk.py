"""A disk that fills up during a merge, and float64 models: whole programs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import models
import numpy as np
import pytest
from safetensors.numpy import load_file
from tolerance import rounding

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "merge"


def command(method, base, experts, output, **values):
    settings = {"base": base, "experts": ",".join(experts), "output": output} | values
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    config = str(CONFIGS / f"{method}.py")
    return [sys.executable, "-m", "merging", "merge", "--config", config, *flags]


def run(arguments, **extra):
    return subprocess.run(
        arguments,
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""} | extra,
        capture_output=True,
        text=True,
    )


def on_a_small_disk(folder, script):
    """Run a shell script in a namespace of its own, with 2 MB mounted on a folder."""
    mounted = f"mount -t tmpfs -o size=2m none {folder} && {script}"
    return run(["unshare", "--mount", "--map-root-user", "sh", "-c", mounted])


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    if not shutil.which("unshare") or on_a_small_disk(folder, "true").returncode:
        pytest.skip("this system does not let its users mount")
    return folder


ORBAX = pytest.param("orbax", marks=pytest.mark.long)


@pytest.mark.parametrize("format", ["safetensors", ORBAX])
def test_a_full_disk_is_named_and_what_was_done_is_gone_on_with(tmp_path, disk, format):
    base, experts = models.family(tmp_path / "own", 2, dtype=np.float32)
    merge = command(
        "ties",
        base,
        experts.values(),
        f"{disk}/out",
        format=format,
        memory_budget="4MB",
    )
    # Two leaves of 0.3 MB more than the disk holds.
    text = " ".join(merge)
    filler = f"head -c 1500000 /dev/zero > {disk}/filler"
    again = f"rm {disk}/filler; {text} && {sys.executable} -m merging verify {disk}/out"
    ran = on_a_small_disk(disk, f"{filler}; {text}; echo status $?; {again}")
    assert "status 2" in ran.stdout, ran.stderr
    assert "the disk is full" in ran.stderr or "No space" in ran.stderr
    assert "out is what was written" in ran.stdout, ran.stderr


def test_float64_models_merge_in_float64(tmp_path):
    rng = np.random.default_rng(3)
    base = {"a": rng.normal(size=(70, 33)), "b": rng.normal(size=9).astype(np.float32)}
    moved = [
        {k: x + rng.normal(size=x.shape).astype(x.dtype) for k, x in base.items()}
        for _ in range(2)
    ]
    folders = [models.save(tmp_path / f"e{i}", e) for i, e in enumerate(moved)]
    start = models.save(tmp_path / "base", base)
    out = tmp_path / "out"
    merge = command("task_arithmetic", start, folders, out, **{"method.scale": "0.7"})
    ran = run(merge, JAX_ENABLE_X64="1")
    assert ran.returncode == 0, ran.stderr
    merged = load_file(out / "model.safetensors")
    deltas = [m["a"] - base["a"] for m in moved]
    expected = base["a"] + 0.7 * sum(deltas)
    magnitude = np.max(np.abs(base["a"]) + 0.7 * sum(map(np.abs, deltas)))
    assert merged["a"].dtype == np.float64 and merged["b"].dtype == np.float32
    # A difference, a sum of two, the scale, the addition: fused or not.
    atol = rounding(5, magnitude, np.float64)
    np.testing.assert_allclose(merged["a"], expected, rtol=0, atol=atol)
