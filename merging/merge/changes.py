"""What a merge changed, leaf by leaf: how far from its base, and how much of it."""

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from merging.checkpoints import MissingCheckpoint, Source, open_checkpoint
from merging.merge import manifest
from merging.merge.rules import layer_leaf
from merging.runtime import storage, tree
from merging.runtime.errors import UserError

# Bytes of either model that are read at a time.
PART = 2**23


class LeafChange(NamedTuple):
    """How a leaf of a model differs from the same leaf of its base.

    Attributes:
      path, shape, dtype: of the leaf.
      layer, kind: the layer's number (None outside of all layers), and the path
        without it: the same for this leaf of every layer.
      elements, changed: how many there are, and how many differ from the base's.
      norm, base_norm: Euclidean norms of the difference and of the base; squares are
        summed in float64, part by part.
      largest: the largest absolute difference.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    layer: int | None
    kind: str
    elements: int
    changed: int
    norm: float
    base_norm: float
    largest: float

    @property
    def relative(self) -> float | None:
        """‖θ − θ₀‖ / ‖θ₀‖; None for a base of zeros."""
        return self.norm / self.base_norm if self.base_norm else None

    @property
    def kept(self) -> float:
        """The share of elements that differ from the base's: 1 − sparsity."""
        return self.changed / self.elements if self.elements else 0.0


def changes(
    model: Source,
    base: Source,
    advance: Callable[[int], None] = lambda size: None,
) -> tuple[list[LeafChange], list[str]]:
    """Hold a model against its base, in parts: neither is ever whole in memory.

    Args:
      model, base: opened checkpoints.
      advance: told the bytes that were read.

    Returns:
      A change for each leaf that both have in one shape, in the model's order, and a
      line for each that only one has, or whose shapes differ.

    Raises:
      UserError: they share no leaf.
    """
    ours, theirs = tree.flatten(model.abstract), tree.flatten(base.abstract)
    shared = [
        path
        for path in ours
        if path in theirs and ours[path].shape == theirs[path].shape
    ]
    if not shared:
        raise UserError(
            f"{model.uri} and {base.uri} share no leaf of one shape; is that its base?"
        )
    lines = [f"{path}: not in the base" for path in ours if path not in theirs]
    lines += [f"{path}: only in the base" for path in theirs if path not in ours]
    lines += [
        f"{path}: {ours[path].shape}, in the base {theirs[path].shape}"
        for path in ours
        if path in theirs and path not in set(shared)
    ]

    def of(path: str) -> LeafChange:
        return _change(path, ours, theirs, model, base, advance)

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(of, shared)), lines


def _change(
    path: str,
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    model: Source,
    base: Source,
    advance: Callable[[int], None],
) -> LeafChange:
    shape, dtype = tuple(ours[path].shape), tree.dtype(ours[path])
    other = tree.dtype(theirs[path])
    elements = math.prod(shape)
    step = max(PART // max(dtype.itemsize, other.itemsize), 1)
    changed, squares, base_squares, largest = 0, 0.0, 0.0, 0.0
    for start in range(0, elements, step):
        count = min(step, elements - start)
        one, two = np.empty(count, dtype), np.empty(count, other)
        model.read_into(path, start, one)
        base.read_into(path, start, two)
        mine, before = one.astype(np.float64), two.astype(np.float64)
        difference = mine - before
        changed += int(np.count_nonzero(difference))
        squares += float(difference @ difference)
        base_squares += float(before @ before)
        largest = max(largest, float(np.max(np.abs(difference))))
        advance(one.nbytes + two.nbytes)
    inside = layer_leaf(path)
    return LeafChange(
        *(path, shape, str(dtype)),
        layer=int(inside.number) if inside else None,
        kind=f"{inside.before}*{inside.after}" if inside else path,
        elements=elements,
        changed=changed,
        norm=math.sqrt(squares),
        base_norm=math.sqrt(base_squares),
        largest=largest,
    )


class Inspection(NamedTuple):
    """A merged checkpoint, looked at.

    Attributes:
      model: its place.
      record: its manifest; None without one.
      base: where the base was read that it was held against; None: not at hand.
      changes: as of `changes`; none without a base.
      notes: what could not be looked at, and why.
    """

    model: str
    record: Mapping[str, Any] | None
    base: str | None
    changes: list[LeafChange]
    notes: list[str]


def inspect(
    model: str,
    base: str | None = None,
    advance: Callable[[int], None] = lambda size: None,
) -> Inspection:
    """Look at a merged checkpoint: its manifest, and its change against the base.

    Args:
      model: the checkpoint.
      base: where its base is now; without it, where the manifest has it.
      advance: told the bytes that were read.

    Raises:
      UserError: there is no checkpoint, neither a manifest nor a base, or a manifest
        or base that can't be read.
    """
    source = open_checkpoint(model)
    folder = storage.place(model) if model.startswith(storage.KEPT_IN) else Path(model)
    path = folder / manifest.NAME
    record = manifest.read(path) if path.is_file() else None
    if record is None and base is None:
        raise UserError(
            f"{model} has no {manifest.NAME}, so nothing tells how it was made; name "
            "the model that it is to be held against: --base PATH."
        )
    place = base
    if record and not place:
        place = manifest.in_place(record["settings"], folder, {})["base"]
    if not place:
        note = "It was merged without a base; --base PATH names one to hold it against."
        return Inspection(model, record, None, [], [note])
    try:
        other = open_checkpoint(place)
    except MissingCheckpoint:
        if base:
            raise
        note = f"Its base is no longer at {place}; --base PATH says where it is now."
        return Inspection(model, record, None, [], [note])
    found, lines = changes(source, other, advance)
    return Inspection(model, record, place, found, lines)
