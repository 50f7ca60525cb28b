"""Kernels on a CPU: what NumPy finds sooner than XLA, and blocks by parts of rows."""

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

# Elements of a part of what is summed or looked at by rows: what is computed in between
# stays in the cache, where that of a whole block takes new pages of memory, which cost
# more than the arithmetic. Most merges have little in between: parts would cost more.
PART = 2**19
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
) -> Array:
    """Return what a kernel makes of a block.

    Args:
      kernel: is given all that follows `method`.
      block: the block.
      method: whose task vectors the kernel looks at; what its transforms find on the
        host is put into the states before.
      base: the block of θ₀; None if the method needs none.
      experts: of each expert.
      states: [expert][transform].
      known: of all experts: the combiner's state, or those of selections.
      offset: as `kernels.merge` has it.
    """
    experts, states = list(experts), [list(of) for of in states]
    wanted = [
        i
        for i, part in enumerate(method.transforms)
        if isinstance(part, OnHost) and part.granularity == "row"
    ]
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
    """Yield what `computed` returns of the same, some rows at a time or all at once."""
    inputs = base, experts, states, known, offset
    fit = _rows_of_a_part(block, method, experts)
    if not fit:
        yield computed(kernel, block, method, *inputs)
        return
    host, rows = jax.tree.map(np.asarray, inputs), experts[0].shape[0]
    (device,) = experts[0].sharding.device_set
    waiting: collections.deque[Any] = collections.deque()
    for at in range(0, rows, fit):
        part = jax.tree.map(lambda x, at=at: x[at : at + fit], host)
        part = jax.device_put(part, device)
        waiting.append(computed(kernel, block, method, *part))
        if len(waiting) > AHEAD:
            yield jax.tree.map(np.asarray, waiting.popleft())
    yield from (jax.tree.map(np.asarray, part) for part in waiting)


def merged(
    kernel: Callable[..., Any],
    block: Block,
    method: Method,
    base: Array | None,
    experts: Sequence[Array],
    states: Sequence[Sequence[Any]],
    known: Any,
    offset: Index,
) -> Any:
    """Return what `computed` returns of the same, of some rows at a time if that pays.

    It does where rows are looked at whole, which takes arrays in between.
    """
    inputs = base, experts, states, known, offset
    parts = (*method.transforms, method.combiner, *method.combiner.selections)
    if not any(map(_looks_at_rows, parts)):
        return computed(kernel, block, method, *inputs)
    found = list(in_parts(kernel, block, method, *inputs))
    if len(found) == 1:
        return found[0]
    return jax.tree.map(lambda *of: np.concatenate(list(map(np.asarray, of))), *found)


def _looks_at_rows(part: Any) -> bool:
    """Return whether it does while merging, and not only for sums made before."""
    reduction = getattr(part, "reduction", lambda: None)()
    return part.granularity == "row" and not isinstance(reduction, methods.Sums)


def summed(
    kernel: Callable[..., Array],
    block: Block,
    method: Method,
    base: Array | None,
    experts: Sequence[Array],
    states: Sequence[Sequence[Any]],
    known: Any,
    offset: Index,
) -> Array | np.ndarray:
    """Return what `computed` returns of the same, for kernels of [T, rows, ...]."""
    inputs = base, experts, states, known, offset
    parts = list(in_parts(kernel, block, method, *inputs))
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _rows_of_a_part(block: Block, method: Method, experts: Sequence[Any]) -> int:
    """Return how many rows are computed at a time; 0: the block at once."""
    # Rows that are counted together, by a merge that votes, stay together.
    fit = 1 << max(PART // block.columns, kernels.FOLDED).bit_length() - 1
    apart = method.granularity in ("element", "row") and on_one_cpu(experts[0])
    apart = apart and block.shape is None and experts[0].shape[0] > fit
    return fit if apart else 0


def _on_cpus(array: Any) -> bool:
    devices = jax.devices() if isinstance(array, np.ndarray) else array.devices()
    return next(iter(devices)).platform == "cpu"
