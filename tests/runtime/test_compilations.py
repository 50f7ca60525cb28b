"""What one process compiled, the next one reads; what a killed one left is cleared."""

import os
import signal
import subprocess
import sys

import pytest

COMPILE = """
import os, signal, sys
import jax
from merging.runtime import compilations

compilations.keep()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
print(jax.jit(lambda x: x * 3 + 1)(2.0))
print("hit" if "/jax/compilation_cache/cache_hits" in hits else "miss")
sys.stdout.flush()
if sys.argv[1:] == ["die"]:
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def run(tmp_path):
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPIL")
    }
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, "-c", COMPILE, *arguments],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert "Error" not in done.stderr, done.stderr
        return done

    return run


def test_a_killed_process_leaves_nothing_behind_and_a_finished_one_its_programs(
    run, tmp_path
):
    assert run("die").returncode == -signal.SIGKILL
    (kept,) = (tmp_path / "merging" / "compiled").iterdir()
    (left,) = kept.iterdir()
    assert left.name.startswith(".process-") and list(left.iterdir())
    assert run().stdout.split() == ["7.0", "miss"]
    assert not left.exists()
    assert [path for path in kept.iterdir() if path.is_file()]
    assert run().stdout.split() == ["7.0", "hit"]
    assert not [path for path in kept.iterdir() if path.is_dir()]


def test_where_nothing_can_be_kept_the_work_is_done_all_the_same(run, tmp_path):
    (tmp_path / "merging").write_text("a file")
    assert run().stdout.split() == ["7.0", "miss"]


def test_the_oldest_are_dropped_first(tmp_path, monkeypatch):
    from merging.runtime import compilations

    for age in range(4):
        path = tmp_path / f"{age}-cache"
        path.write_bytes(b"12")
        os.utime(path, (1000 - age, 1000 - age))
    monkeypatch.setattr(compilations, "ENTRIES", 3)
    monkeypatch.setattr(compilations, "BYTES", 5)
    compilations.prune(tmp_path.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"0-cache", "1-cache"}
