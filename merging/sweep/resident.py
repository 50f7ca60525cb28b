"""A base and experts that stay in memory, merged and scored again and again.

They are held as their checkpoints have them, so that a merge here has the bits of
`merging merge` with the same text; λ, densities and weights are traced, so that another
value of them compiles nothing (see `Space.compiled` for what is not). On a mesh they
are split as the decoder's leaves are, and merged where they lie.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from merging import checkpoints, evaluation, models, tasks
from merging.evaluation import DatasetScore, Requests
from merging.evaluation.job import compile_cost, raise_if_preempted
from merging.merge import merge, rules
from merging.merge.inputs import Inputs, open_inputs
from merging.merge.statistics import open_statistics
from merging.merge.stored import StoredLeaf
from merging.methods import Method, Statistics
from merging.models import hf
from merging.runtime import sharding, tree
from merging.sweep.space import Recipe

Leaves = dict[str, jax.Array]


class Resident:
    """The models of a search, in memory from when they are first asked for.

    Attributes:
      inputs: the models' checkpoints.
      decoder: what they are.
      mesh: devices that share them; the first one has all of them if None.

    Args:
      base: its checkpoint; None for a method that needs none.
      experts: {name: checkpoint}, in the order of per-expert numbers.
      mesh: the attribute.
      statistics: {kind: {expert's name: folder}}, for methods that want some. They
        stay in storage, and are read beside each leaf that is merged by them.

    Raises:
      UserError: models that cannot be merged, or of no known family; a mesh that does
        not divide their leaves.
    """

    def __init__(
        self,
        base: str | None,
        experts: Mapping[str, str],
        mesh: Mesh | None = None,
        statistics: Mapping[Statistics, Mapping[str, str]] = {},  # noqa: B006
    ):
        told = {k: open_statistics(k, folders) for k, folders in statistics.items()}
        self.inputs: Inputs = open_inputs(base, experts)._replace(statistics=told)
        opened = hf.open_model(self.inputs.first.uri)
        self._table, self._stacked = opened.leaves, opened.stacked
        dtype = str(opened.leaves["embed"].dtype)
        self.decoder = dataclasses.replace(
            opened.config, dtype=dtype, param_dtype=dtype
        )
        self.mesh, self._experts = mesh, list(experts)
        like = tree.flatten(models.abstract(self.decoder, mesh))
        self._where = {path: leaf.sharding for path, leaf in like.items()}

    @functools.cached_property
    def _base(self) -> Leaves | None:
        return None if self.inputs.base is None else self._read(self.inputs.base)

    @functools.cached_property
    def _models(self) -> dict[str, Leaves]:
        return {name: self._read(self.inputs.experts[name]) for name in self._experts}

    def model(self, name: str | None) -> models.Params:
        """Return the parameters of an expert; of the base for None."""
        return self._params(self._base if name is None else self._models[name])

    def merged(self, recipe: Recipe, seed: int) -> models.Params:
        """Return the parameters of a merge.

        Raises:
          UserError: as `merging.merge`, or rules that match no leaf.
        """
        first = self._base or self._models[self._experts[0]]
        floats = [p for p in first if tree.dtype_class(first[p]) == "float"]
        chosen = rules.recipe(floats, recipe.method, recipe.rules)
        found = dict(first)
        for method in dict.fromkeys(m for m in chosen.values() if m is not None):
            # A method finds what it must know over its own leaves, as streamed.
            mine = [path for path, one in chosen.items() if one == method]
            experts = {name: _part(of, mine) for name, of in self._models.items()}
            base = _part(self._base, mine) if method.needs_base else None
            told = self._told(method)
            made = merge(base, experts, method, seed=seed, statistics=told)
            found |= tree.flatten(made)
        return self._params(found)

    def _told(self, method: Method) -> dict[str, tree.Tree] | None:
        """Return the experts' statistics that a method wants, if it wants some."""
        if method.statistics is None:
            return None
        sources = self.inputs.statistics[method.statistics]
        return {name: _stored(source) for name, source in sources.items()}

    def _read(self, source: checkpoints.Source) -> Leaves:
        """Return all leaves of a checkpoint, under their paths, where they belong."""
        # Buffers that are no leaves of the decoder go everywhere.
        where: dict[str, Sharding] = dict.fromkeys(
            tree.flatten(source.abstract),
            jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            if self.mesh is None
            else NamedSharding(self.mesh, PartitionSpec()),
        )
        for path, leaf in self._table.items() if self.mesh is not None else ():
            if self._stacked:
                where[path] = self._where[path]
            else:
                where |= dict.fromkeys(
                    leaf.tensors, _unstacked(self._where[path], leaf)
                )
        return source.read(list(where), where)

    def _params(self, leaves: Leaves) -> models.Params:
        """Return leaves of a checkpoint as the decoder's parameters."""
        if self._stacked:
            return tree.unflatten(leaves)
        return tree.unflatten(
            {
                path: _assembled(
                    [leaves[name] for name in leaf.tensors],
                    *(leaf.stacked, leaf.transposed, self._where[path]),
                )
                for path, leaf in self._table.items()
            }
        )


def _stored(source: checkpoints.Source) -> tree.Tree:
    """Return a checkpoint's leaves, each read when it is needed."""

    def leaf(path: str, of: jax.ShapeDtypeStruct) -> StoredLeaf:
        def read(sharding: Sharding) -> jax.Array:
            return source.read([path], {path: sharding})[path]

        return StoredLeaf(of.shape, of.dtype, read)

    return tree.map_named(leaf, source.abstract)


def _part(leaves: Leaves, paths: Iterable[str]) -> tree.Tree:
    return tree.unflatten({path: leaves[path] for path in paths})


def _unstacked(where: NamedSharding, leaf: hf.Leaf) -> NamedSharding:
    """Return how the tensors that a leaf is made of are split as the leaf is."""
    spec = [*where.spec] + [None] * (len(leaf.shape) - len(where.spec))
    spec = spec[1:] if leaf.stacked else spec
    return NamedSharding(
        where.mesh, PartitionSpec(*(spec[::-1] if leaf.transposed else spec))
    )


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _assembled(
    tensors: Sequence[jax.Array],
    stacked: bool,
    transposed: bool,
    where: NamedSharding | None,
) -> jax.Array:
    """Return a decoder's leaf from its tensors."""
    tensors = [x.T for x in tensors] if transposed else tensors
    leaf = jnp.stack(tensors) if stacked else tensors[0]
    return leaf if where is None else jax.lax.with_sharding_constraint(leaf, where)


def score(
    decoder: models.DecoderConfig,
    params: models.Params,
    requests: Requests,
    batch_size: int,
    mesh: Mesh | None = None,
) -> list[DatasetScore]:
    """Return what parameters score, by the one evaluator.

    Args:
      decoder: the model.
      params: its parameters.
      requests: from `ask`.
      batch_size: rows of a call; 0: as many as suit the requests.
      mesh: where the parameters are, to split the rows over it.

    Raises:
      Preempted: it was asked to stop, which is looked for after every batch.
    """
    calls = models.predictor(decoder, mesh)
    return evaluation.evaluate(
        requests,
        models.Predictor(*(functools.partial(call, params) for call in calls)),
        batch_size=batch_size,
        sharding=None if mesh is None else sharding.batch_sharding(mesh),
        compile_cost=compile_cost(models.parameter_count(decoder)),
        tick=lambda tokens: raise_if_preempted(),
    )


def ask(
    suite: tasks.Suite,
    split: str,
    datasets: Iterable[str],
    count: int,
    decoder: models.DecoderConfig,
    cache: Any,
) -> Requests:
    """Return a split's requests of some datasets, read once for all models.

    Of each the first `count` examples, or all for 0.
    """
    return evaluation.requests(
        suite,
        split,
        datasets=list(datasets),
        count=count or None,
        context=decoder.max_length,
        vocab_size=decoder.vocab_size,
        cache_dir=cache,
    )
