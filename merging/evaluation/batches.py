"""Requests → batches of few shapes, made once and used for many models.

Requests of all datasets that ask for the same kind of call share batches of a fixed
size. All choices of a prompt are one row, behind a prompt that is computed once.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from merging.evaluation import shapes
from merging.evaluation.requests import Request, Requests, TemplateRequests
from merging.evaluation.shapes import Shape
from merging.runtime.errors import UserError

# By default a further shape is worth it if it saves this share of all tokens.
WORTH = 0.03


class Batch(NamedTuple):
    """A call's arguments, and what they are.

    Attributes:
      rows: numbers of the requests [R]; what stands behind them only fills the batch.
      arrays: prefixes [B], tokens [B, T], prompt lengths [B], and to score also firsts,
        segments and targets, as `predictions.Predictor` explains them.
      tokens: that the model reads and makes for these requests, roughly.
    """

    rows: np.ndarray
    arrays: tuple[Any, ...]
    tokens: float


class Calls(NamedTuple):
    """All batches of one kind of call.

    Attributes:
      call: see `TemplateRequests.call`.
      members: numbers of the sets whose requests these are, in order.
      batches: the requests of all members, numbered from 0.
      answers: shape and dtype of the table of their answers, a row for each.
    """

    call: tuple[int, ...]
    members: tuple[int, ...]
    batches: tuple[Batch, ...]
    answers: tuple[tuple[int, int], type]


class Batches(NamedTuple):
    """Requests cut into batches.

    Attributes:
      sets: whose requests.
      calls: the batches, by kind of call.
      padding: share of all slots that hold no token of a row.
    """

    sets: tuple[TemplateRequests, ...]
    calls: tuple[Calls, ...]
    padding: float


class _Shapes(NamedTuple):
    choices: int  # that a row to score has room for
    of: Mapping[bool, tuple[Shape, ...]]  # of rows to score (True), to generate (False)


def prepare(
    requests: Requests,
    *,
    datasets: Iterable[str] | None = None,
    batch_size: int = 128,
    sharding: Any = None,
    compile_cost: float | None = None,
) -> Batches:
    """Cut requests into batches, in shapes chosen for all of them together.

    Args:
      requests: from `requests`.
      datasets: names of those to cut; all by default, and then the batches are kept
        for the next model.
      batch_size: rows of a call, always exactly this many.
      sharding: a ``jax.sharding.NamedSharding`` for the first axis, e.g.
        ``NamedSharding(mesh, PartitionSpec("data"))``; the batches are put there now,
        each process's part by that process. By default they stay NumPy arrays and go
        where the model is.
      compile_cost: tokens that the model handles in the time of a compilation: a
        further shape must save them. By default, 3 % of all tokens.

    Raises:
      UserError: no requests, a batch size below 1 or one that the mesh does not divide.
    """
    if batch_size < 1:
        raise UserError(f"batch size {batch_size}: needs 1 or more")
    how = (batch_size, sharding, compile_cost)
    if how in requests.kept and datasets is None:
        return requests.kept[how]
    chosen = requests if datasets is None else requests.only(datasets)
    if not chosen.sets:
        raise UserError("no datasets to evaluate")
    if ("shapes", compile_cost) not in requests.kept:
        requests.kept["shapes", compile_cost] = _shapes(requests.sets, compile_cost)
    fitting = requests.kept["shapes", compile_cost]
    made = _batches(chosen.sets, fitting, batch_size, _placement(batch_size, sharding))
    if datasets is None:
        requests.kept[how] = made
    return made


def _shapes(sets: Sequence[TemplateRequests], compile_cost: float | None) -> _Shapes:
    if compile_cost is None:
        rows = sum(
            lengths.sum() + len(lengths) for lengths, _ in (s.sizes for s in sets)
        )
        compile_cost = WORTH * float(rows)
    found = {}
    for ranked in (True, False):
        members = [one for one in sets if one.eval_set.ranked == ranked]
        # Every number of tokens to generate is another program of each shape.
        programs = len({one.call for one in members})
        found[ranked] = shapes.choose(*_sizes(members), compile_cost * programs)
    most = max(len(request.choices) for one in sets for request in one.requests)
    return _Shapes(shapes.power_of_2(most), found)


def _sizes(sets: Sequence[TemplateRequests]) -> tuple[np.ndarray, np.ndarray]:
    """Return lengths and tails [R] of all requests."""
    both = [np.stack(one.sizes) for one in sets] or [np.zeros((2, 0), int)]
    lengths, tails = np.concatenate(both, axis=1)
    return lengths, tails


def _batches(
    sets: tuple[TemplateRequests, ...], fitting: _Shapes, batch_size: int, place
) -> Batches:
    kinds: dict[tuple[int, ...], list[int]] = {}
    for number, one in enumerate(sets):
        kinds.setdefault(one.call, []).append(number)
    calls, slots, used = [], 0, 0
    for call, members in kinds.items():
        asked = [request for i in members for request in sets[i].requests]
        lengths, tails = _sizes([sets[i] for i in members])
        batches = []
        for shape, rows in shapes.deal(
            lengths, tails, fitting.of[not call], batch_size
        ):
            part = [asked[i] for i in rows]
            part += part[-1:] * (batch_size - len(part))
            arrays = _prompts(part, shape)
            arrays += () if call else _continuations(part, fitting.choices, shape)
            tokens = float(lengths[rows].sum() + len(rows) * sum(call[:1]))
            placed = tuple(place(array) for array in arrays)
            batches.append(Batch(np.array(rows), placed, tokens))
            slots += batch_size * (shape.width + 1)
        used += int(lengths.sum()) + len(lengths)
        width, dtype = (call[0], np.int32) if call else (fitting.choices, np.float32)
        answers = ((len(asked), width), dtype)
        calls.append(Calls(call, tuple(members), tuple(batches), answers))
    return Batches(sets, tuple(calls), 1 - used / slots)


def _placement(batch_size: int, sharding: Any) -> Callable[[np.ndarray], Any]:
    if sharding is None:
        return lambda array: array
    import jax

    try:
        sharding.shard_shape((batch_size,))
    except ValueError as error:
        raise UserError(
            f"a batch of {batch_size} does not split evenly over {sharding}: choose "
            "a multiple of the data axis"
        ) from error
    return lambda array: jax.make_array_from_callback(
        array.shape, sharding, lambda part: array[part]
    )


def _prompts(part: list[Request], shape: Shape) -> tuple[np.ndarray, ...]:
    """Return prefixes, tokens and prompt lengths."""
    tokens = np.zeros((len(part), shape.width), np.int32)
    for row, request in zip(tokens, part, strict=True):
        ids = np.concatenate([request.prompt, *(c[:-1] for c in request.choices)])
        row[: len(ids)] = ids
    prefixes = np.array([request.prefix for request in part], np.int32)
    lengths = np.array([len(request.prompt) for request in part], np.int32)
    return prefixes, tokens, lengths


def _continuations(
    part: list[Request], choices: int, shape: Shape
) -> tuple[np.ndarray, ...]:
    """Return firsts, segments and targets."""
    firsts = np.zeros((len(part), choices), np.int32)
    segments = np.full((len(part), shape.tail), -1, np.int32)
    targets = np.zeros((len(part), shape.tail), np.int32)
    for row, request in enumerate(part):
        firsts[row, : len(request.choices)] = [choice[0] for choice in request.choices]
        if request.tail:
            sizes = [len(choice) - 1 for choice in request.choices]
            segments[row, : request.tail] = np.repeat(np.arange(len(sizes)), sizes)
            following = np.concatenate([choice[1:] for choice in request.choices])
            targets[row, : request.tail] = following
    return firsts, segments, targets
