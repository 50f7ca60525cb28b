"""Examples, and which of them make up the batch of a step."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from merging.errors import UserError


class Examples(NamedTuple):
    """Sequences to learn from.

    Attributes:
      tokens: ids [N, T] without BOS, rows padded on the right with 0.
      loss_weights: [N, T], the weight of predicting each token; 0 on padding.
    """

    tokens: np.ndarray
    loss_weights: np.ndarray


def trim(examples: Examples, vocab_size: int) -> Examples:
    """Return them as int32 and float32, cut to the longest row's multiple of 16.

    Raises:
      UserError: no examples, shapes that differ, ids outside the vocabulary, or
        nothing to learn.
    """
    tokens = np.asarray(examples.tokens, np.int32)
    weights = np.asarray(examples.loss_weights, np.float32)
    if tokens.ndim != 2 or not len(tokens) or tokens.shape != weights.shape:
        raise UserError(
            "examples need tokens and loss_weights of one shape [N, T] with N > 0, got "
            f"{tokens.shape} and {weights.shape}."
        )
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        raise UserError(
            f"token ids run from {tokens.min()} to {tokens.max()}, but the model's "
            f"vocabulary from 0 to {vocab_size - 1}."
        )
    if not (weights.any() and np.isfinite(weights).all()):
        raise UserError("loss weights must be finite, and not all of them 0.")
    # Tokens after the last one that is learned influence nothing.
    longest = 1 + int(np.flatnonzero(weights.any(axis=0))[-1])
    length = min(-(-longest // 16) * 16, tokens.shape[1])
    return Examples(tokens[:, :length], weights[:, :length])


def rows_of(
    count: int, batch_size: int, seed: int, start: int, stop: int
) -> np.ndarray:
    """Return the examples [stop - start, batch_size] of steps start … stop - 1.

    Every epoch is a fresh permutation drawn from (seed, epoch), and steps run through
    the epochs end to end: no example is seen twice as often as another.
    """
    first, last = start * batch_size, stop * batch_size
    epochs = range(first // count, (last - 1) // count + 1)
    order = np.concatenate([_permutation(seed, e, count) for e in epochs])
    offset = epochs.start * count
    return order[first - offset : last - offset].reshape(-1, batch_size)


def in_order(examples: Examples, batch_size: int) -> Iterator[Examples]:
    """Yield all examples in full batches, the last filled up with weightless rows."""
    for start in range(0, len(examples.tokens), batch_size):
        part = [array[start : start + batch_size] for array in examples]
        short = batch_size - len(part[0])
        yield Examples(*(np.pad(array, ((0, short), (0, 0))) for array in part))


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)
