"""Kernels on a CPU: by parts of rows, with what NumPy finds sooner than XLA."""

import collections
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from merging import methods
from merging.merge import kernels
from merging.merge.partition import Block
from merging.methods import Method, OnHost
from merging.runtime import blas, numerics
from merging.runtime.numerics import Index

# Elements of a part: what is computed in between stays in the cache, where that of a
# whole block takes new pages of memory, which cost more than the arithmetic.
PART = 2**20
# Parts that are computed while one is waited for.
AHEAD = 3


def on_one_cpu(array: Any) -> bool:
    """Return whether NumPy computes where an array lies."""
    if isinstance(array, np.ndarray):
        return True
    devices = array.sharding.device_set
    return len(devices) == 1 and next(iter(devices)).platform == "cpu"


def computed(
    kernel: Callable[..., Array],
    block: Block,
    method: Method,
    base: Array | None,
    experts: Sequence[Array],
    states: Sequence[Sequence[Any]],
    known: Any,
    offset: Index,
    *,
    axis: int | None = 0,
) -> Array | np.ndarray:
    """Return what a kernel makes of a block; on the host if that lies on one CPU.

    Args:
      kernel: is given all that follows `method`.
      block: the block.
      method: whose task vectors the kernel looks at.
      base: the block of θ₀; None if the method needs none.
      experts: of each expert.
      states: [expert][transform].
      known: of all experts: the combiner's state, or those of selections.
      offset: as `kernels.merge` has it.
      axis: of the result's rows; None computes the block at once.
    """
    inputs = base, list(experts), [list(of) for of in states], known, offset
    if axis is None or not _rows_of_a_part(block, method, experts):
        return _completed(kernel, block, method, inputs)
    result, done = None, 0
    for part in in_parts(kernel, block, method, *inputs):
        if result is None:
            shape = list(part.shape)
            shape[axis] = experts[0].shape[0]
            result = np.empty(shape, part.dtype)
        stop = done + part.shape[axis]
        result[(slice(None),) * axis + (slice(done, stop),)] = part
        done = stop
    return result


def in_parts(
    kernel: Callable[..., Array],
    block: Block,
    method: Method,
    base: Array | None,
    experts: Sequence[Array],
    states: Sequence[Sequence[Any]],
    known: Any,
    offset: Index,
) -> Iterator[Array | np.ndarray]:
    """Yield what `computed` returns, some of the rows at a time, or all at once."""
    inputs = base, list(experts), [list(of) for of in states], known, offset
    fit = _rows_of_a_part(block, method, experts)
    if not fit:
        yield _completed(kernel, block, method, inputs)
        return
    host, rows = jax.tree.map(np.asarray, inputs), experts[0].shape[0]
    (device,) = experts[0].sharding.device_set
    waiting: collections.deque[Array] = collections.deque()
    for at in range(0, rows, fit):
        part = jax.tree.map(lambda x, at=at: x[at : at + fit], host)
        part = jax.device_put(part, device)
        waiting.append(_completed(kernel, block, method, part))
        if len(waiting) > AHEAD:
            yield np.asarray(waiting.popleft())
    yield from map(np.asarray, waiting)


def _rows_of_a_part(block: Block, method: Method, experts: Sequence[Any]) -> int:
    """Return how many rows are computed at a time; 0: the block at once."""
    fit = 1 << max(PART // block.columns, 1).bit_length() - 1
    apart = method.granularity in ("element", "row") and on_one_cpu(experts[0])
    apart = apart and block.shape is None and experts[0].shape[0] > fit
    return fit if apart else 0


def _completed(
    kernel: Callable[..., Array], block: Block, method: Method, inputs: tuple
) -> Array:
    """Run a kernel; what transforms find on the host is put into the states before."""
    base, experts, states, known, offset = inputs
    wanted = [i for i, t in enumerate(method.transforms) if isinstance(t, OnHost)]
    for i, expert in enumerate(experts):
        if not wanted or not on_one_cpu(expert):
            break
        chain = method.of(i)
        read = [x for x in (base, expert) if x is not None]
        working = numerics.working_dtype(*(x.dtype for x in read))
        for number in wanted:
            keys = kernels.keys(
                methods.alone(method, chain[:number]),
                None,
                base,
                [expert],
                [states[i][:number]],
                [],
                offset,
                strides=block.strides,
                dtype=jnp.dtype(f"uint{working.itemsize * 8}"),
            )
            found = chain[number].on_host(states[i][number], np.asarray(keys))
            states[i][number] = jax.device_put(found, expert.sharding)
    if method.granularity == "matrix" and _on_cpus(experts[0]):
        with blas.one_thread():
            return jax.block_until_ready(kernel(base, experts, states, known, offset))
    return kernel(base, experts, states, known, offset)


def _on_cpus(array: Any) -> bool:
    devices = jax.devices() if isinstance(array, np.ndarray) else array.devices()
    return next(iter(devices)).platform == "cpu"
