"""The one door to TensorFlow: quiet, and blind to accelerators."""

import functools
import os
import types


@functools.cache
def load_seqio() -> types.ModuleType:
    """Import seqio after telling TensorFlow to leave the accelerators to JAX.

    TensorFlow takes all memory of every GPU that it sees on first use, so it must be
    told before seqio, which imports it, creates a tensor.

    Raises:
      RuntimeError: TensorFlow was used before this call and already holds a device.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)
    import seqio

    return seqio
