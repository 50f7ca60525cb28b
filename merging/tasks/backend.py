"""The one door to TensorFlow: quiet, and blind to accelerators."""

import contextlib
import functools
import os
import sys
import tempfile
import types
from collections.abc import Iterator

from merging.runtime.start import uncollected

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
    with _without_noise(), uncollected():
        import tensorflow as tf

        for kind in ("GPU", "TPU"):
            tf.config.set_visible_devices([], kind)
        import seqio

    return seqio


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
