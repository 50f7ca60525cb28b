"""Adapters as models of a merge: their coordinates in a space, on a base of zeros."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from merging.checkpoints import (
    Adapter,
    Source,
    SourceFile,
    is_adapter,
    open_checkpoint,
    split_adapter,
)
from merging.checkpoints.source import read_leaves
from merging.merge import inputs
from merging.merge.inputs import Inputs
from merging.merge.spaces.space import SPACES, Space
from merging.runtime.errors import UserError, listed, nearest

WEIGHTS = "weights"


class _Coordinates:
    """One adapter's coordinates, and the leaves that it replaces whole."""

    format, skeleton = "peft", None

    def __init__(self, name: str, adapter: Adapter, start: "_Zeros", space: Space):
        self.uri = adapter.uri
        self._name, self._adapter, self._space = name, adapter, space
        self._start = start
        self.abstract: dict[str, Any] = dict(start.abstract)
        for leaf, tensor in adapter.whole.items():
            self.abstract[leaf] = adapter.tensors.abstract[tensor]

    def read(
        self, paths: Iterable[str], shardings: Mapping[str, jax.sharding.Sharding]
    ) -> dict[str, jax.Array]:
        """Return ``{path: array}``."""
        return read_leaves(self, paths, shardings)

    def read_into(self, path: str, start: int, out: np.ndarray) -> None:
        """Fill `out` with elements [start, start + len) of a leaf, row-major."""
        if path in self._adapter.whole:
            self._adapter.tensors.read_into(self._adapter.whole[path], start, out)
        elif self._start.holds(path):  # another adapter replaces it
            self._start.read_into(path, start, out)
        else:
            self._space.read_into(self._name, path, start, out)

    def files(self) -> list[SourceFile]:
        """Return the adapter's files."""
        return self._adapter.files()

    def paths(self) -> dict[str, epath.Path]:
        """Return where they are, by name."""
        return self._adapter.paths()


class _Zeros:
    """Where coordinates start from: zeros; and the base's own leaves beside them."""

    format, skeleton = "peft", None

    def __init__(self, uri: str, abstract: dict, base: Source | None):
        self.uri, self.abstract, self._base = uri, abstract, base

    def read(
        self, paths: Iterable[str], shardings: Mapping[str, jax.sharding.Sharding]
    ) -> dict[str, jax.Array]:
        """Return ``{path: array}``."""
        return read_leaves(self, paths, shardings)

    def read_into(self, path: str, start: int, out: np.ndarray) -> None:
        """Fill `out` with elements [start, start + len) of a leaf, row-major."""
        if self.holds(path):
            self._base.read_into(path, start, out)
        else:
            out[...] = 0

    def holds(self, path: str) -> bool:
        """Return whether a leaf is one of the base's own."""
        return self._base is not None and path in self._base.abstract

    def files(self) -> list[SourceFile]:
        """Return the base's files, if there is one."""
        return self._base.files() if self._base else []

    def paths(self) -> dict[str, epath.Path]:
        """Return where they are, by name."""
        return self._base.paths() if self._base else {}


def open_adapters(
    space: str, base: str | None, experts: Mapping[str, str]
) -> tuple[Inputs, Space, dict[str, Adapter]]:
    """Open adapters to merge them in a space.

    Args:
      space: its name.
      base: read only for the leaves that adapters replace whole.
      experts: the adapters' folders by name; of `BASE+ADAPTER`, the adapter is taken.

    Returns:
      The inputs, the space, and the adapters in the order they were given.

    Raises:
      UserError: an unknown space; one is no adapter, or they can't be merged in it.
    """
    if space not in SPACES:
        raise nearest("space", space, [WEIGHTS, *SPACES])
    if not experts:
        raise UserError("no experts: name at least one adapter to merge (experts).")
    places = {name: _place(uri) for name, uri in experts.items()}
    if models := [name for name, place in places.items() if not is_adapter(place)]:
        raise UserError(
            f"space={space} merges LoRA adapters, and {listed(models)} is none; "
            "models and adapters are merged together in space=weights."
        )
    given = {name: Adapter(place) for name, place in places.items()}
    adapters = {name: given[name] for name in sorted(given)}
    chosen = SPACES[space](adapters)
    coordinates = {
        path: leaf
        for module in chosen.scaling
        for path, leaf in chosen.coordinates(module).items()
    }
    start = _start(base, coordinates, given)
    order = tuple(list(given).index(name) for name in adapters)
    sources = {n: _Coordinates(n, a, start, chosen) for n, a in adapters.items()}
    found = Inputs(start, sources, order)
    inputs.require_mergeable(found)
    return found, chosen, given


def _place(uri: str) -> str:
    model, adapter = split_adapter(uri)
    return adapter or model


def _start(
    base: str | None, coordinates: Mapping[str, Any], adapters: Mapping[str, Adapter]
) -> _Zeros:
    whole = {leaf for adapter in adapters.values() for leaf in adapter.whole}
    first = next(iter(adapters.values()))
    if not whole:
        return _Zeros(base or first.uri, dict(coordinates), None)
    if not base:
        raise UserError(
            f"the adapters replace leaves of their base ({listed(sorted(whole))}), "
            "whose task vectors need it: name it (base)."
        )
    source = open_checkpoint(base)
    if missing := sorted(whole - source.abstract.keys()):
        raise UserError(
            f"the adapters replace {listed(missing)}, and the base {base} has none."
        )
    leaves = {leaf: source.abstract[leaf] for leaf in sorted(whole)}
    return _Zeros(base, {**coordinates, **leaves}, source)
