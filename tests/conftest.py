"""Eight virtual CPU devices, cheap compilation, and a compilation cache."""

import atexit
import gc
import os
import tempfile
from pathlib import Path

import pytest
from together import QUICK

CACHE = Path(tempfile.gettempdir()) / "merging-test-compilation-cache"

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# No test asks a server; a name of the Hub means what lies in its cache.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
# Of a flag that is there twice, the last holds: the caller's.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_force_host_platform_device_count=8",
        QUICK,
        os.environ.get("XLA_FLAGS", ""),
    ]
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


# A worker keeps every program it compiled, and a look at all of it, as a collection of
# the oldest generation takes, would be a quarter of the tests' time.
gc.set_threshold(100_000, 20, 1000)


def pytest_sessionfinish(session):
    """Let a worker of xdist end at once: JAX takes minutes to clear its caches."""
    if hasattr(session.config, "workerinput"):
        atexit.register(os._exit, 0)


@pytest.fixture(scope="module")
def object_store():
    """An object store on this machine, with the bucket `gs://store`."""
    reason = "needs the extra `gcs` and gcp-storage-emulator"
    module = pytest.importorskip("object_store", reason=reason)
    with module.running() as running:
        yield running
