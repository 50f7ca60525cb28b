"""The jitted part of `collect`: what each batch of examples adds to the statistics."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from merging import models
from merging.runtime import sharding, text, tree
from merging.runtime.errors import UserError
from merging.training.steps import shifted, state_shardings, total_loss

FISHER, GRAM = "fisher", "gram"
KINDS = (FISHER, GRAM)
# {kind: a tree with the leaves' names: their sums so far}, float32.
Sums = dict[str, tree.Tree]


class Collector(NamedTuple):
    """The jitted functions of one model on one mesh.

    Attributes:
      abstract: shapes and shardings of the sums.
      start: ``() -> sums``, all 0.
      add: ``(params, sums, tokens [B, T], weights) -> (sums, tokens counted)``; the
        sums' buffers are reused. Rows without weight add nothing.
    """

    abstract: Sums
    start: Callable[[], Sums]
    add: Callable[..., tuple[Sums, jax.Array]]


def abstract_sums(
    config: models.DecoderConfig, kinds: Sequence[str], mesh: Mesh | None = None
) -> Sums:
    """Return the shapes of some kinds of statistics, and where a mesh has them."""
    shapes = models.abstract(config)
    row = jax.ShapeDtypeStruct((1, 16), jnp.int32)
    weight = jax.ShapeDtypeStruct(row.shape, jnp.float32)
    found: Sums = {}
    for kind in kinds:
        if kind == FISHER:
            found[kind] = jax.tree.map(lambda x: x.update(dtype=jnp.float32), shapes)
        else:
            grams = functools.partial(_grams, config, None)
            found[kind] = jax.eval_shape(grams, shapes, row, weight)
    return _with_shardings(config, found, mesh)


def bytes_to_gather(
    config: models.DecoderConfig, kinds: Sequence[str], mesh: Mesh | None
) -> int:
    """Return the bytes of a device that gathering takes at least.

    The model in float32, the sums, as much again for what a batch adds to them, and for
    Fisher information an example's whole gradient, which only ``tensor`` cuts.
    """
    config = dataclasses.replace(config, param_dtype="float32")
    sums = sharding.device_bytes(abstract_sums(config, kinds, mesh))
    needed = sharding.device_bytes(models.abstract(config, mesh)) + 2 * sums
    if FISHER in kinds:
        parts = 1 if mesh is None else mesh.shape.get("tensor", 1)
        needed += sharding.device_bytes(models.abstract(config)) // parts
    return needed


def bytes_beside(config: models.DecoderConfig, kind: str, mesh: Mesh | None) -> int:
    """Return the most bytes of a device that one leaf's statistics take in a merge.

    Fisher information lies as the leaf does. A Gram matrix is whole on every device,
    as a merge by it solves for whole matrices.
    """
    found = abstract_sums(config, (kind,), mesh if kind == FISHER else None)
    return max(map(sharding.device_bytes, jax.tree.leaves(found)))


def require_room(
    config: models.DecoderConfig,
    kinds: Sequence[str],
    mesh: Mesh | None,
    room: float,
    of: str,
) -> None:
    """Refuse to gather what a device does not hold.

    Args:
      config: the decoder.
      kinds: of `KINDS`.
      mesh: the devices; None for one.
      room: bytes of a device; 0 where no one knows.
      of: what to call the model.

    Raises:
      UserError: it has too few; says what would do.
    """
    needed = bytes_to_gather(config, kinds, mesh)
    if not room or needed <= room:
        return
    alone = {kind: bytes_to_gather(config, (kind,), mesh) for kind in kinds}
    fit = [kind for kind, size in alone.items() if size <= room]
    devices = 1 if mesh is None else math.prod(mesh.shape.values())
    instead = f"{math.ceil(devices * needed / room)} devices or more (mesh)"
    if fit and len(kinds) > 1:
        only = ", ".join(f"{kind} takes {text.size(alone[kind])}" for kind in fit)
        instead = f"one kind at a time (statistics; {only}) or {instead}"
    raise UserError(
        f"{' and '.join(kinds)} of {of}: gathering takes {text.size(needed)} of each "
        f"device at least, and one has {text.size(room)}: take {instead}."
    )


def collector(
    config: models.DecoderConfig,
    params: models.Params,
    kinds: Sequence[str],
    mesh: Mesh | None,
) -> Collector:
    """Return the functions that gather some kinds of statistics.

    Args:
      config: the decoder.
      params: its parameters, of which only shapes and shardings are looked at.
      kinds: of `KINDS`.
      mesh: the devices; None for one.
    """
    together = 1 if mesh is None else sharding.batch_parts(mesh)
    ask = {FISHER: functools.partial(_fisher, config, together), GRAM: None}
    ask[GRAM] = functools.partial(_grams, config, mesh)
    abstract = abstract_sums(config, kinds, mesh)

    def add(params, sums, tokens, weights):
        found = {kind: ask[kind](params, tokens, weights) for kind in kinds}
        total = jax.tree.map(jnp.add, sums, found)
        return _placed(total, abstract), _seen(config, tokens, weights)[1].sum()

    zeros = functools.partial(
        jax.tree.map, lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract
    )
    return Collector(
        abstract,
        jax.jit(lambda: _placed(zeros(), abstract)),
        jax.jit(add, donate_argnums=1),
    )


def means(sums: Sums, examples: int, tokens: int) -> Sums:
    """Return the means of sums: Fisher's over examples, Gram matrices' over tokens."""
    counts = {FISHER: examples, GRAM: tokens}
    return {kind: _divided(of, counts[kind]) for kind, of in sums.items()}


@jax.jit
def _divided(sums: tree.Tree, count: int) -> tree.Tree:
    return jax.tree.map(lambda leaf: leaf / jnp.float32(count), sums)


def _fisher(
    config: models.DecoderConfig,
    together: int,
    params: models.Params,
    tokens: jax.Array,
    weights: jax.Array,
) -> tree.Tree:
    """Return Σ over examples of the squared gradient of log p of their targets.

    An example's gradient is as large as the model: each part of the mesh that has rows
    of its own works on one example at a time.
    """

    def surprise(params, row, weight):
        return total_loss(config, params, row[None], weight[None])[0]

    def step(sums, rows):
        of_each = jax.vmap(jax.grad(surprise), (None, 0, 0))(params, *rows)
        squared = jax.tree.map(
            lambda g: jnp.sum(jnp.square(g.astype(jnp.float32)), axis=0), of_each
        )
        return jax.tree.map(jnp.add, sums, squared), None

    # The rows of a step lie on different parts of the mesh, as the batch's do.
    def dealt(x):
        return x.reshape(together, -1, *x.shape[1:]).swapaxes(0, 1)

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)
    return jax.lax.scan(step, zeros, (dealt(tokens), dealt(weights)))[0]


def _grams(
    config: models.DecoderConfig,
    mesh: Mesh | None,
    params: models.Params,
    tokens: jax.Array,
    weights: jax.Array,
) -> tree.Tree:
    """Return Σ x xᵀ over the tokens up to each example's last target."""

    def cut(gram: jax.Array) -> jax.Array:
        # Each layer's as it is made: left alone, every device holds all of them whole.
        if mesh is None:
            return gram
        return jax.lax.with_sharding_constraint(gram, _by_rows(mesh, gram.shape))

    seen = _seen(config, tokens, weights)
    return tree.unflatten(models.input_grams(config, params, *seen, cut))


def _seen(config, tokens, weights) -> tuple[jax.Array, jax.Array]:
    """Return the model's inputs [B, T], and which of them any target depends on."""
    inputs, _, weights = shifted(config, tokens, weights)
    later = jnp.cumsum(weights[:, ::-1], axis=1)[:, ::-1]
    return inputs, later > 0


def _placed(sums: Sums, abstract: Sums) -> Sums:
    return jax.tree.map(
        lambda x, a: (
            x if a.sharding is None else jax.lax.with_sharding_constraint(x, a.sharding)
        ),
        sums,
        abstract,
    )


def _by_rows(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    spec: list[Any] = [None] * len(shape)
    if shape[-2] % math.prod(mesh.shape.values()) == 0:
        spec[-2] = tuple(mesh.shape)
    return NamedSharding(mesh, PartitionSpec(*spec))


def _with_shardings(config, abstract: Sums, mesh: Mesh | None) -> Sums:
    """Fisher information lies as its parameters do; Gram matrices are cut by rows."""
    if mesh is None:
        return abstract
    where = {}
    for kind, of in abstract.items():
        if kind == FISHER:
            where[kind] = state_shardings(config, mesh, of)
        else:
            where[kind] = jax.tree.map(lambda x: _by_rows(mesh, x.shape), of)
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=place
        ),
        abstract,
        where,
    )
