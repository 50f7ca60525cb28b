"""Requests → batches of few shapes, made once and used for many models.

Requests of all datasets that ask for the same kind of call share batches of a fixed
size. All choices of a prompt are one row, behind a prompt that is computed once.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from merging.evaluation import shapes
from merging.evaluation.requests import (
    BareRequests,
    Call,
    Request,
    Requests,
    TemplateRequests,
)
from merging.evaluation.shapes import Shape
from merging.runtime.errors import UserError
from merging.runtime.sharding import place

# By default a further shape is worth it if it saves this share of all tokens.
WORTH = 0.03
# Rows of a call that nobody set, or a few more that divide over a mesh.
MOST_ROWS, LEAST_ROWS = 128, 8
# Room for choices that every row has: the same program serves two and four.
LEAST_CHOICES = 4


class Batch(NamedTuple):
    """One call of a model.

    Attributes:
      call: see `TemplateRequests.call`.
      requests: numbers of the requests [R]; further rows of the arrays only fill them.
      arrays: prefixes [B], tokens [B, T], prompt lengths [B], and to score also firsts,
        segments and targets, as `predictions.Predictor` explains them.
      tokens: that the model reads and makes for these requests.
    """

    call: Call
    requests: np.ndarray
    arrays: tuple[Any, ...]
    tokens: int


class Batches(NamedTuple):
    """Requests cut into batches.

    Attributes:
      sets: whose requests, numbered from 0 through all sets.
      batches: in the order of the calls.
      padding: share of all slots that hold no token of a request.
    """

    sets: tuple[TemplateRequests | BareRequests, ...]
    batches: tuple[Batch, ...]
    padding: float


class Shapes(NamedTuple):
    """What rows are padded to.

    Attributes:
      choices: that a row to score has room for.
      scored, generated: the shapes of rows to score and to generate.
    """

    choices: int
    scored: tuple[Shape, ...]
    generated: tuple[Shape, ...]


def prepare(
    requests: Requests,
    *,
    datasets: Iterable[str] | None = None,
    batch_size: int = 0,
    sharding: Any = None,
    compile_cost: float | None = None,
) -> Batches:
    """Cut requests into batches, in shapes chosen for all of them together.

    Args:
      requests: from `requests`.
      datasets: names of those to cut; all by default, and then the batches are kept
        for the next model.
      batch_size: rows of a call, always exactly this many; 0: as many as suit the
        requests (`rows_of_a_call`).
      sharding: a ``jax.sharding.NamedSharding`` for the first axis, e.g.
        ``NamedSharding(mesh, PartitionSpec("data"))``; the batches are put there now,
        each process's part by that process. By default they stay NumPy arrays and go
        where the model is.
      compile_cost: tokens that the model handles in the time of a compilation: a
        further shape must save them. By default, 3 % of all tokens.

    Raises:
      UserError: no requests, a batch size below 0 or one that the mesh does not divide.
    """
    if not requests.sets:
        raise UserError("no datasets to evaluate")
    batch_size = batch_size or rows_of_a_call(requests, sharding)
    _require_divides(batch_size, sharding)
    how = (batch_size, sharding, compile_cost)
    if datasets is None and how in requests.kept:
        return requests.kept[how]
    chosen = requests if datasets is None else requests.only(datasets)
    if not chosen.sets:
        raise UserError("no datasets to evaluate")
    if compile_cost not in requests.kept:
        requests.kept[compile_cost] = choose_shapes(requests, compile_cost)
    made = _batches(chosen.sets, requests.kept[compile_cost], batch_size, sharding)
    if datasets is None:
        requests.kept[how] = made
    return made


def rows_of_a_call(requests: Requests, sharding: Any = None) -> int:
    """Return a power of 2: at most a category's examples, in the mean over them.

    A call's rows are of one shape, and those that nobody asks for are computed, too:
    of few examples most would be such. A sweep's datasets are of one size, so that
    whichever are asked share their programs. Over a mesh it is the next number that
    divides.
    """
    categories = {one.dataset.category for one in requests.sets}
    rows = sum(one.eval_set.examples for one in requests.sets if not one.references)
    whole = 1 << max(rows // len(categories), 1).bit_length() - 1
    rows, parts = min(max(whole, LEAST_ROWS), MOST_ROWS), 1
    if sharding is not None:
        devices = sharding.num_devices
        parts = devices // sharding.shard_shape((devices,))[0]
    return -(-rows // parts) * parts


def _require_divides(batch_size: int, sharding: Any) -> None:
    if batch_size < 1:
        raise UserError(
            f"batch size {batch_size}: needs 1 or more, or 0 for as many as suit"
        )
    try:
        if sharding is not None:
            sharding.shard_shape((batch_size,))
    except ValueError as error:
        raise UserError(
            f"a batch of {batch_size} does not split evenly over {sharding}: choose "
            "a multiple of the data axis"
        ) from error


def choose_shapes(requests: Requests, compile_cost: float | None = None) -> Shapes:
    """Return few shapes that all requests fit into; `compile_cost` as in `prepare`."""
    if compile_cost is None:
        tokens = sum(int((one.sizes[0] + 1).sum()) for one in requests.sets)
        compile_cost = WORTH * tokens
    scored = [one for one in requests.sets if not one.call]
    generated = [one for one in requests.sets if one.call]
    # Every number of tokens to generate is another program of each shape.
    programs = len({one.call for one in generated})
    choices = [len(request.choices) for one in scored for request in one.requests]
    return Shapes(
        max(shapes.power_of_2(max(choices, default=0)), LEAST_CHOICES),
        shapes.choose(*_sizes(scored), compile_cost),
        shapes.choose(*_sizes(generated), compile_cost * programs),
    )


def _sizes(
    sets: Sequence[TemplateRequests | BareRequests],
) -> tuple[np.ndarray, np.ndarray]:
    """Return lengths and tails [R] of all requests."""
    both = [np.stack(one.sizes) for one in sets] or [np.zeros((2, 0), int)]
    lengths, tails = np.concatenate(both, axis=1)
    return lengths, tails


def _batches(
    sets: tuple[TemplateRequests | BareRequests, ...],
    fitting: Shapes,
    batch_size: int,
    sharding: Any,
) -> Batches:
    asked = [request for one in sets for request in one.requests]
    calls = [one.call for one in sets for _ in one.requests]
    lengths, tails = _sizes(sets)
    found, slots = [], 0
    for call in dict.fromkeys(calls):
        mine = np.array([i for i, other in enumerate(calls) if other == call])
        own = fitting.generated if call else fitting.scored
        for shape, rows in shapes.deal(lengths[mine], tails[mine], own, batch_size):
            numbers = mine[rows]
            part = [asked[i] for i in numbers]
            part += part[-1:] * (batch_size - len(part))
            made = arrays(part, shape, fitting.choices)[: 3 if call else None]
            if sharding is not None:
                made = tuple(place(array, sharding) for array in made)
            tokens = int(lengths[numbers].sum()) + len(rows) * sum(call[:1])
            found.append(Batch(call, numbers, made, tokens))
            slots += batch_size * (shape.width + 1)
    return Batches(sets, tuple(found), 1 - int((lengths + 1).sum()) / slots)


def arrays(
    part: Sequence[Request], shape: Shape, choices: int
) -> tuple[np.ndarray, ...]:
    """Return prefixes, tokens, prompt lengths, firsts, segments and targets of rows.

    Args:
      part: the rows.
      shape: that all of them fit.
      choices: that a row has room for.
    """
    tokens = np.zeros((len(part), shape.width), np.int32)
    firsts = np.zeros((len(part), choices), np.int32)
    segments = np.full((len(part), shape.tail), -1, np.int32)
    targets = np.zeros((len(part), shape.tail), np.int32)
    for row, (_, prompt, continuations) in enumerate(part):
        ids = np.concatenate([prompt, *(ids[:-1] for ids in continuations)])
        tokens[row, : len(ids)] = ids
        firsts[row, : len(continuations)] = [ids[0] for ids in continuations]
        if tail := len(ids) - len(prompt):
            sizes = [len(ids) - 1 for ids in continuations]
            segments[row, :tail] = np.repeat(np.arange(len(sizes)), sizes)
            targets[row, :tail] = np.concatenate([ids[1:] for ids in continuations])
    prefixes = np.array([request.prefix for request in part], np.int32)
    lengths = np.array([len(request.prompt) for request in part], np.int32)
    return prefixes, tokens, lengths, firsts, segments, targets
