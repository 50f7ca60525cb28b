"""The one door to TensorFlow: quiet, and blind to accelerators."""

import contextlib
import functools
import gc
import os
import sys
import tempfile
import types
from collections.abc import Iterator

# What TensorFlow's C++ says on import whatever TF_CPP_MIN_LOG_LEVEL is.
_NOISE = (b"I0000 ", b"WARNING: All log messages before absl::InitializeLog()")


@functools.cache
def load_seqio() -> types.ModuleType:
    """Import seqio after telling TensorFlow to leave the accelerators to JAX.

    TensorFlow takes all memory of every GPU that it sees on first use, so it must be
    told before seqio, which imports it, creates a tensor.

    Raises:
      RuntimeError: TensorFlow was used before this call and already holds a device.
    """
    level = "TF_CPP_MIN_LOG_LEVEL"
    if os.environ.get(level, "1") == "1":  # which is what JAX sets
        os.environ[level] = "3"
    with _without_noise(), _without_collecting():
        import tensorflow as tf

        for kind in ("GPU", "TPU"):
            tf.config.set_visible_devices([], kind)
        import seqio

    return seqio


@contextlib.contextmanager
def _without_collecting() -> Iterator[None]:
    """Leave all objects that live at its end out of every garbage collection.

    TensorFlow's are 700,000 that stay: looking through them takes a quarter of its
    import, and more time later. What is garbage already is collected before.
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


@contextlib.contextmanager
def _without_noise() -> Iterator[None]:
    """Hold back what is written to descriptor 2, then pass on all but the noise."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            held.seek(0)
            for line in held:
                if not line.startswith(_NOISE):
                    os.write(2, line)
