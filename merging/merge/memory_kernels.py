"""The jitted functions of a merge in memory, each for one block of a model.

They are all that runs on the devices, so that what a merge would cost on devices that
are not there can be read from them, compiled ahead of time.
"""

from functools import partial

import jax

from merging import methods
from merging.runtime import numerics


def _merge_block(
    base, method, experts, states, verdict, offset, *, strides, dtype, sharding
):
    index = numerics.element_index(experts[0].shape, strides, offset)
    merged = methods.merge_block(method, base, experts, states, verdict, index, dtype)
    if sharding is None:
        return merged
    return jax.lax.with_sharding_constraint(merged, sharding)


_STATIC = ("strides", "dtype", "sharding")
merge = jax.jit(_merge_block, static_argnames=_STATIC)
# An average does not read the base, whose buffers are to be reused all the same.
merge_over = jax.jit(
    _merge_block, static_argnames=_STATIC, donate_argnums=0, keep_unused=True
)


@partial(jax.jit, static_argnames=("strides", "dtype"))
def keys(transforms, base, expert, states, offset, *, strides, dtype):
    """Return the magnitude keys of one expert's Δ after some transforms."""
    index = numerics.element_index(expert.shape, strides, offset)
    return methods.magnitude_keys(transforms, base, expert, states, index, dtype)


@partial(jax.jit, static_argnames="strides")
def count(transforms, base, expert, states, offset, threshold, cutoff, *, strides):
    """Return how many of one expert's Δ each trial would keep (`count_kept`)."""
    index = numerics.element_index(expert.shape, strides, offset)
    return methods.count_kept(
        transforms, base, expert, states, index, threshold, cutoff
    )


@partial(jax.jit, static_argnames="strides")
def ballot(method, base, experts, states, offset, *, strides):
    """Return elements with a positive sum of votes, less those negative."""
    index = numerics.element_index(experts[0].shape, strides, offset)
    return methods.count_votes(method, base, experts, states, index)
