"""What a CPU finds of a block sooner with NumPy than with XLA."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from merging import methods
from merging.merge import kernels
from merging.methods import Method, OnHost
from merging.runtime import numerics
from merging.runtime.numerics import Index


def on_one_cpu(array: Any) -> bool:
    """Return whether NumPy computes where an array lies."""
    if isinstance(array, np.ndarray):
        return True
    devices = array.sharding.device_set
    return len(devices) == 1 and next(iter(devices)).platform == "cpu"


def complete(
    method: Method,
    base: Array | None,
    experts: Sequence[Array],
    states: list[list[Any]],
    offset: Index,
    *,
    strides: tuple[int, ...],
) -> None:
    """Put what transforms find on the host into a block's states, if it lies on a CPU.

    Args:
      method: whose transforms.
      base: the block of θ₀; None if the method needs none.
      experts: of each expert.
      states: [expert][transform], as `kernels.merge` takes them.
      offset: likewise.
      strides: likewise.
    """
    wanted = [i for i, t in enumerate(method.transforms) if isinstance(t, OnHost)]
    if not wanted or not on_one_cpu(experts[0]):
        return
    for i, expert in enumerate(experts):
        chain = method.of(i)
        wide = numerics.working_dtype(
            *(x.dtype for x in (base, expert) if x is not None)
        )
        for number in wanted:
            keys = kernels.keys(
                methods.alone(method, chain[:number]),
                None,
                base,
                [expert],
                [states[i][:number]],
                [],
                offset,
                strides=strides,
                dtype=jnp.dtype(f"uint{wide.itemsize * 8}"),
            )
            found = chain[number].on_host(states[i][number], np.asarray(keys))
            states[i][number] = jax.device_put(found, expert.sharding)
