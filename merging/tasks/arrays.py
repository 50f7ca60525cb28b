"""Training data as arrays, read through seqio once and from disk ever after."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from merging.runtime.errors import UserError, nearest
from merging.tasks import cache
from merging.tasks.faults import require_none
from merging.tasks.suites import Suite


class TokenArrays(NamedTuple):
    """Sequences to train on.

    Attributes:
      tokens: int32 [N, T], without BOS, padded on the right with 0.
      loss_weights: bool [N, T]: the answer and its end mark; for pretraining the
        whole text.
    """

    tokens: np.ndarray
    loss_weights: np.ndarray


def materialise(
    suite: Suite,
    what: str,
    split: str,
    length: int,
    *,
    count: int | None = None,
    cache_dir: Path | str | None = None,
) -> TokenArrays:
    """Return training data of a suite.

    Args:
      suite: whose data.
      what: "pretrain", "instruct", "multitask", a held-in category or a dataset.
      split: "train", "validation" or "test" (the first two have no "test").
      length: T; a longer sequence is an error, or where a suite's texts are real ones,
        loses tokens at its begin.
      count: examples to sample from a mixture by its rates, repeating datasets that
        run out; by default each dataset once, one after the other.
      cache_dir: where to keep the arrays; with them there, TensorFlow isn't imported.

    Raises:
      UserError: an unknown name or split, no examples, an answer without a token, or
        a sequence longer than ``length``, with the examples' numbers.
    """
    name = suite.training(what)
    members = suite.members(what)
    if members and count is None:
        # A dataset is in two mixtures: read and kept once.
        parts = [
            materialise(suite, member, split, length, cache_dir=cache_dir)
            for member in members
        ]
        return TokenArrays(*map(np.concatenate, zip(*parts, strict=True)))
    if cache_dir is None:
        return _read(suite, name, what, split, length, count)
    key = cache.key(suite.digest, split, length, count)
    path = Path(cache_dir) / f"{name}-{split}-{key}.npz"
    stored = cache.read(path)
    if stored is None:
        stored = _read(suite, name, what, split, length, count)._asdict()
        cache.write(path, stored)
    return TokenArrays(**stored)


def _read(suite, name, what, split, length, count) -> TokenArrays:
    from merging.tasks.registration import as_written, register, seqio

    register(suite)
    mixture = seqio.get_mixture_or_task(name)
    if split not in mixture.splits:
        raise nearest(f"split of {what}", split, mixture.splits)
    # A mixture that is sampled repeats its datasets without end.
    epochs = 1 if count is None else None
    read = as_written(mixture.get_dataset)(
        split=split, shuffle=False, seed=0, num_epochs=epochs
    )
    read = read if count is None else read.take(count)
    batches = list(read.ragged_batch(4096))
    if not batches:
        raise UserError(f"dataset {what} ({split}) is empty")
    return _joined(pairs(suite, batches, length, f"{what} ({split})"), length)


class Pairs(NamedTuple):
    """Prompts and answers, each kind end to end, beside their lengths [n]."""

    inputs: np.ndarray
    starts: np.ndarray
    targets: np.ndarray
    sizes: np.ndarray


def pairs(suite: Suite, batches: Sequence[Any], length: int, dataset: str) -> Pairs:
    """Return the rows of ragged batches, each of at most ``length`` tokens.

    Raises:
      UserError: a longer one, unless the suite's texts are cut; an answer without a
        token; with their numbers.
    """
    targets, sizes = _ragged([b["targets"] for b in batches])
    inputs, starts = _ragged([b["inputs"] for b in batches])
    if suite.material.truncates:
        inputs, starts = _shortened(inputs, starts, np.maximum(length - sizes, 0))
    ends = starts + sizes
    faults = [
        f"example {i}: {ends[i]} tokens, more than the {length} allowed"
        for i in np.flatnonzero(ends > length)
    ]
    # The end mark is one of the target's tokens.
    faults += [f"example {i}: empty answer" for i in np.flatnonzero(sizes < 2)]
    require_none(faults, dataset)
    return Pairs(inputs, starts, targets, sizes)


def _joined(found: Pairs, length: int) -> TokenArrays:
    starts = found.starts[:, None]
    ends = starts + found.sizes[:, None]
    position = np.arange(length)
    in_answer = (position >= starts) & (position < ends)
    tokens = np.zeros((len(ends), length), np.int32)
    tokens[position < starts] = found.inputs
    tokens[in_answer] = found.targets
    return TokenArrays(tokens, in_answer)


def _shortened(values, sizes, most) -> tuple[np.ndarray, np.ndarray]:
    """Cut every sequence from the left to the size that it may have."""
    first = np.repeat(np.cumsum(sizes) - np.minimum(sizes, most), sizes)
    return values[np.arange(len(values)) >= first], np.minimum(sizes, most)


def _ragged(tensors) -> tuple[np.ndarray, np.ndarray]:
    values = np.concatenate([t.flat_values.numpy() for t in tensors])
    return values, np.concatenate([t.row_lengths().numpy() for t in tensors])
