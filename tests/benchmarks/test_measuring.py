"""The benchmark's own instruments, on programs whose cost is known.

pytest -n 0 tests/benchmarks/test_measuring.py
"""

import sys
import time

import inputs
import measuring
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open


def usage_of(program, tmp_path, **options):
    command = measuring.Command([sys.executable, "-c", program])
    (usage,) = measuring.measure([command], tmp_path, **options)
    return usage


@pytest.fixture(scope="module")
def idle(tmp_path_factory):
    return usage_of("pass", tmp_path_factory.mktemp("idle"))


def test_memory_counts_children_and_no_mapped_files(tmp_path, idle):
    (tmp_path / "mapped").write_bytes(bytes(100_000_000))
    child = "import time; x = b'1' * 150_000_000; time.sleep(0.7)"
    program = (
        "import subprocess, sys, mmap\n"
        f"f = open({str(tmp_path / 'mapped')!r}, 'rb')\n"
        "m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)\n"
        "sum(m[i] for i in range(0, len(m), 4096))\n"
        "x = b'1' * 100_000_000\n"
        f"subprocess.run([sys.executable, '-c', {child!r}])\n"
    )
    usage = usage_of(program, tmp_path)
    assert usage.status == 0, usage.output
    assert 250e6 < usage.anonymous < 290e6 + 2 * idle.anonymous
    assert usage.resident > usage.anonymous + 90e6


def test_bytes_read_are_those_of_the_program_and_its_children(tmp_path, idle):
    (tmp_path / "data").write_bytes(bytes(30_000_000))
    read = f"open({str(tmp_path / 'data')!r}, 'rb').read()"
    program = f"import subprocess, sys; {read}\n"
    program += f"subprocess.run([sys.executable, '-c', {read!r}])"
    usage = usage_of(program, tmp_path)
    assert usage.status == 0, usage.output
    assert 60e6 <= usage.read - idle.read < 63e6


def test_seconds_of_work_and_of_waiting_are_told_apart(tmp_path, idle):
    program = (
        "import time; time.sleep(0.5)\n"
        "end = time.process_time() + 0.3\n"
        "while time.process_time() < end: pass"
    )
    usage = usage_of(program, tmp_path)
    assert 0.3 <= usage.cpu < 0.35 + 2 * idle.cpu
    assert usage.wall > 0.8


def test_what_runs_too_long_is_killed_with_its_children(tmp_path):
    child = f"import time; time.sleep(2); open({str(tmp_path / 'late')!r}, 'w')"
    program = (
        "import subprocess, sys; print('started', flush=True)\n"
        f"subprocess.run([sys.executable, '-c', {child!r}])"
    )
    usage = usage_of(program, tmp_path, limit=1.0)
    assert usage.status == -9
    assert 1.0 <= usage.wall < 2.0
    assert usage.output == "started\n"
    time.sleep(2)
    assert not (tmp_path / "late").exists()


def test_a_llama_of_the_default_size_has_334_005_248_parameters():
    assert inputs.SIZES["1x"].parameters == 334_005_248
    assert inputs.SIZES["2x"].parameters == pytest.approx(2 * 334_005_248, rel=0.01)
    assert inputs.SIZES["4x"].parameters == pytest.approx(4 * 334_005_248, rel=0.01)
    assert 2 * inputs.SIZES["2GB"].parameters == pytest.approx(2e9, rel=0.01)


def test_inputs_are_what_they_say_and_are_made_once(tmp_path, capsys):
    shape = inputs.SIZES["tiny"]
    models = inputs.make(tmp_path, shape, 2)
    loaded = []
    for path in (models.base, *models.experts):
        with safe_open(path / "model.safetensors", "np") as file:
            assert set(file.keys()) == {name for name, _ in inputs.tensors(shape)}
            loaded.append(file.get_tensor("model.embed_tokens.weight"))
            norm = file.get_tensor("model.norm.weight")
            assert abs(norm.astype(np.float32).mean() - 1) < 0.02
    assert all(x.dtype == ml_dtypes.bfloat16 for x in loaded)
    base, one, other = (x.astype(np.float64) for x in loaded)
    assert base.std() == pytest.approx(0.02, rel=0.02)
    assert (one - base).std() == pytest.approx(0.002, rel=0.02)
    assert abs(np.corrcoef((one - base).ravel(), (other - base).ravel())[0, 1]) < 0.03
    assert "making" in capsys.readouterr().out

    weights = models.base / "model.safetensors"
    before = weights.read_bytes(), weights.stat().st_mtime_ns
    inputs.make(tmp_path, shape, 2)
    assert (weights.read_bytes(), weights.stat().st_mtime_ns) == before
    assert capsys.readouterr().out == ""
    weights.write_bytes(before[0][:-2])
    inputs.make(tmp_path, shape, 2)
    assert weights.read_bytes() == before[0]
