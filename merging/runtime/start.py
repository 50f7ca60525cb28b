"""How a command begins."""

import glob
import importlib.metadata
import os
import sys


def import_jax() -> None:
    """Import JAX, without its search for what is not there.

    JAX 0.10 reads the metadata of every installed package to find a plugin for ROCm: of
    two hundred, a tenth of a second. It reads none where no folder has such a name.
    """
    if "jax" in sys.modules:
        return
    found = importlib.metadata.distributions
    folders = [
        os.path.join(glob.escape(entry or "."), "jax[-_]rocm*") for entry in sys.path
    ]
    if not any(map(glob.glob, folders)):
        importlib.metadata.distributions = lambda **context: iter(())
    try:
        import jax  # noqa: F401
    finally:
        importlib.metadata.distributions = found
