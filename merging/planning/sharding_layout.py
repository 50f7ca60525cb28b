"""A decoder's leaves on a mesh: which part of each lies on one device."""

import math
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from merging import models
from merging.models import DecoderConfig
from merging.runtime import sharding, tree


class Leaf(NamedTuple):
    """One leaf, and where it lies.

    Attributes:
      shape: whole.
      dtype: as it is kept.
      sharding: over the mesh.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    sharding: NamedSharding

    @property
    def elements(self) -> int:
        """Elements on one device."""
        return math.prod(self.sharding.shard_shape(self.shape))

    @property
    def bytes(self) -> int:
        """Bytes on one device."""
        return self.elements * self.dtype.itemsize

    @property
    def abstract(self) -> jax.ShapeDtypeStruct:
        """The whole leaf as JAX describes it."""
        return jax.ShapeDtypeStruct(self.shape, self.dtype, sharding=self.sharding)

    def over(self, axis: str) -> int:
        """Return into how many parts a mesh axis cuts it."""
        names = [n for part in self.sharding.spec if part for n in _names(part)]
        return self.sharding.mesh.shape.get(axis, 1) if axis in names else 1


def sharding_layout(
    decoder: DecoderConfig, mesh: Mesh | AbstractMesh
) -> dict[str, Leaf]:
    """Return a decoder's leaves on a mesh.

    Raises:
      UserError: the mesh cuts heads, or does not divide a leaf; lists every offender.
    """
    models.require_whole_heads(decoder, dict(mesh.shape))
    params = models.abstract(decoder)
    chosen = tree.flatten(
        sharding.shardings(params, models.partition_rules(decoder), mesh)
    )
    return {
        path: Leaf(tuple(leaf.shape), np.dtype(leaf.dtype), chosen[path])
        for path, leaf in tree.flatten(params).items()
    }


def _names(part: str | tuple[str, ...]) -> tuple[str, ...]:
    return (part,) if isinstance(part, str) else part
