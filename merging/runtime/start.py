"""How a command begins: JAX's import, at its quickest."""

import contextlib
import gc
import glob
import importlib.metadata
import os
import sys
from collections.abc import Iterator


def import_jax() -> None:
    """Import JAX, without its search for what is not there.

    JAX 0.10 reads the metadata of every installed package to find a plugin for ROCm: of
    two hundred, a tenth of a second. It reads none where no folder has such a name.
    """
    if "jax" in sys.modules:
        return
    found = importlib.metadata.distributions
    places = [glob.escape(place or ".") for place in sys.path]
    if not any(glob.glob(os.path.join(p, "jax[-_]rocm*")) for p in places):
        importlib.metadata.distributions = lambda **context: iter(())
    try:
        with uncollected():
            import jax  # noqa: F401
    finally:
        importlib.metadata.distributions = found


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Leave all objects that live at its end out of every garbage collection.

    What an import makes stays: looking through it takes a tenth of JAX's import and a
    quarter of TensorFlow's, and more time later. What is garbage already is collected
    before.
    """
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
