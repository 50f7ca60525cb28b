"""Spaces in which adapters are merged: what stands for a model, and the way back.

A space gives each adapter *coordinates*, a few arrays for each module; the merge's
method sees these as it would see task vectors (of a base of zeros), and of the merged
ones the space makes the factors of one adapter.
"""

import functools
import threading
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import jax
import numpy as np

from merging.checkpoints import Adapter, low_rank
from merging.merge.spaces import bases
from merging.runtime import blas
from merging.runtime.errors import UserError, listed

# Bases are found as often as blocks come back to a matrix: a few are kept, and of what
# is small so many bytes.
_KEPT, _KEPT_BYTES = 2, 2**27
Shape = tuple[int, int]
Read = Callable[[str], np.ndarray]


class Factors(NamedTuple):
    """A module's A [r, in] and B [out, r]."""

    a: np.ndarray
    b: np.ndarray


class Space(Protocol):
    """A way to merge adapters.

    Attributes:
      name: the setting's.
      scaling: of each module in the merged adapter.
    """

    name: str
    scaling: Mapping[str, float]

    def coordinates(self, module: str) -> dict[str, jax.ShapeDtypeStruct]:
        """Return {a leaf of the merge: shape and dtype} of a module's coordinates."""

    def read_into(self, expert: str, path: str, start: int, out: np.ndarray) -> None:
        """Fill `out` with elements of an adapter's coordinates, row-major."""

    def factors(self, module: str, merged: Read) -> Factors:
        """Return a module's factors, of its merged coordinates by path."""

    def shapes(self, module: str) -> tuple[Shape, Shape]:
        """Return the shapes of a module's A and B."""


class FactorSpace:
    """A and B each by itself, of one shape (Wang et al. 2025, arXiv 2505.21226).

    Not what the sums would be: the mean of two BA is not the product of the means. It
    is how the authors of RHT (arXiv 2505.21226) merge adapters.

    Raises:
      UserError: adapters of other modules, ranks or scalings; all are listed.
    """

    name = "factors"

    def __init__(self, adapters: Mapping[str, Adapter]):
        self._adapters = adapters
        first, one = next(iter(adapters.items()))
        self._modules = one.modules
        wrong = []
        for name, other in adapters.items():
            for module in one.modules.keys() ^ other.modules.keys():
                wrong.append(f"{module} in one of {first!r} and {name!r} alone")
            for module in one.modules.keys() & other.modules.keys():
                ours, theirs = one.modules[module], other.modules[module]
                if ours._replace(a="", b="") != theirs._replace(a="", b=""):
                    wrong.append(
                        f"{module}: {_described(ours)} in {first!r}, "
                        f"{_described(theirs)} in {name!r}"
                    )
        if wrong:
            raise UserError(
                "space=factors merges A with A and B with B, of adapters of one shape "
                f"and scaling: {listed(sorted(wrong))}. Any adapters are merged in "
                "space=core_space or knots, or on their base (space=weights)."
            )
        self.scaling = {m: of.scaling for m, of in one.modules.items()}

    def coordinates(self, module):
        """Return A and B."""
        tensors = next(iter(self._adapters.values())).tensors.abstract
        of = self._modules[module]
        return {f"{module}.lora_A": tensors[of.a], f"{module}.lora_B": tensors[of.b]}

    def read_into(self, expert, path, start, out):
        """Read them."""
        module, side = path.rsplit(".", 1)
        adapter = self._adapters[expert]
        of = adapter.modules[module]
        name = of.a if side == "lora_A" else of.b
        stored = np.empty(out.size, adapter.tensors.abstract[name].dtype)
        adapter.tensors.read_into(name, start, stored)
        out[...] = stored

    def factors(self, module, merged):
        """Return them."""
        return Factors(merged(f"{module}.lora_A"), merged(f"{module}.lora_B"))

    def shapes(self, module):
        """Return the adapters' own."""
        of = self._modules[module]
        return (of.rank, of.inputs), (of.outputs, of.rank)


class _Shared:
    """What the two spaces of a shared basis have in common."""

    def __init__(self, adapters: Mapping[str, Adapter]):
        self._adapters, self._lock = adapters, threading.Lock()
        self._sizes: dict[str, tuple[int, int, int]] = {}
        wrong = []
        for name, adapter in adapters.items():
            for module, of in adapter.modules.items():
                out, into, rank = self._sizes.get(module, (of.outputs, of.inputs, 0))
                if (out, into) != (of.outputs, of.inputs):
                    wrong.append(
                        f"{module}: [{of.outputs}, {of.inputs}] in {name!r}, "
                        f"[{out}, {into}] in another"
                    )
                self._sizes[module] = (out, into, rank + of.rank)
        if wrong:
            raise UserError(
                f"adapters of different bases: {listed(wrong)}. Merge those of one."
            )
        self.scaling = dict.fromkeys(self._sizes, 1.0)
        self._basis = functools.lru_cache(self.kept)(self._find)

    @property
    def kept(self) -> int:
        """How many modules' bases are kept."""
        return _KEPT

    def updates(self, module: str) -> dict[str, bases.Update]:
        """Return what each adapter that has a module adds to it."""
        found = {}
        for name, adapter in self._adapters.items():
            if of := adapter.modules.get(module):
                a, b = (
                    adapter.tensor(side).astype(np.float64) for side in (of.a, of.b)
                )
                if not (np.isfinite(a).all() and np.isfinite(b).all()):
                    raise UserError(
                        f"NaN or Inf in the weights of:\n  {module} in {name!r}"
                    )
                found[name] = bases.Update(a, b, of.scaling)
        return found

    def basis(self, module: str):
        """Return a module's basis; several threads ask for the same."""
        with self._lock:
            return self._basis(module)


class CoreSpace(_Shared):
    """ΔW = U M Vᵀ in shared bases, the M's merged (Panariello et al. 2025).

    M is [Σr, Σr], whatever the model's width. Lossless: a sum of M's is the sum of ΔW.
    """

    name = "core_space"

    @property
    def kept(self):
        """As many modules' M's as a part of the memory holds."""
        largest = max((rank**2 for _, _, rank in self._sizes.values()), default=1)
        return max(_KEPT_BYTES // (4 * len(self._adapters) * largest), _KEPT)

    def _find(self, module):
        updates = self.updates(module)
        left, right = bases.core(list(updates.values()))
        of = {n: bases.core_coordinates(u, left, right) for n, u in updates.items()}
        return {n: m.astype(np.float32) for n, m in of.items()}

    def coordinates(self, module):
        """Return M."""
        out, into, rank = self._sizes[module]
        shape = (min(out, rank), min(into, rank))
        return {f"{module}.core": jax.ShapeDtypeStruct(shape, np.dtype(np.float32))}

    def read_into(self, expert, path, start, out):
        """Read M; of a module that an adapter leaves alone it is zero."""
        found = self.basis(path.removesuffix(".core")).get(expert)
        out[...] = 0 if found is None else found.reshape(-1)[start : start + out.size]

    def factors(self, module, merged):
        """Return M Vᵀ and U."""
        left, right = bases.core(list(self.updates(module).values()))
        with blas.one_thread():
            a = merged(f"{module}.core").astype(np.float64) @ right.T
        return Factors(a, left)

    def shapes(self, module):
        """Return those of M Vᵀ and U."""
        out, into, rank = self._sizes[module]
        return (min(out, rank), into), (out, min(out, rank))


class _Rows(NamedTuple):
    """Coordinates of one adapter in KnOTS' basis: left @ right, of a low rank."""

    left: np.ndarray
    right: np.ndarray


class Knots(_Shared):
    """[ΔW₁ … ΔW_K] = U Σ [V₁ᵀ … V_Kᵀ], Σ Vᵢᵀ merged (Stoica et al. 2025)."""

    name = "knots"

    def _find(self, module):
        updates = self.updates(module)
        left = bases.knots(list(updates.values()))
        of = {}
        for name, update in updates.items():
            with blas.one_thread():
                rows = update.scaling * (left.T @ update.b)
            rows = low_rank.rounded(rows, axis=1)
            of[name] = _Rows(rows, low_rank.rounded(update.a, axis=0))
        return left, of

    def coordinates(self, module):
        """Return Σ Vᵢᵀ."""
        shape = self.shapes(module)[0]
        return {f"{module}.knots": jax.ShapeDtypeStruct(shape, np.dtype(np.float32))}

    def read_into(self, expert, path, start, out):
        """Make some elements of Σ Vᵢᵀ = (s Uᵀ Bᵢ) Aᵢ."""
        found = self.basis(path.removesuffix(".knots"))[1].get(expert)
        if found is None or not out.size:
            out[...] = 0
            return
        columns = found.right.shape[1]
        row, last = start // columns, -(-(start + out.size) // columns)
        values = low_rank.product(found.left[row:last], found.right).reshape(-1)
        out[...] = values[start - row * columns :][: out.size]

    def factors(self, module, merged):
        """Return the merged Σ Vᵀ and U."""
        return Factors(merged(f"{module}.knots"), self.basis(module)[0])

    def shapes(self, module):
        """Return those of Σ Vᵀ and U."""
        out, into, rank = self._sizes[module]
        return (min(out, rank), into), (out, min(out, rank))


def _described(module) -> str:
    shape = [module.outputs, module.inputs]
    return f"{shape} of rank {module.rank}, s = {module.scaling:g}"


SPACES: dict[str, Callable[[Mapping[str, Adapter]], Space]] = {
    space.name: space for space in (FactorSpace, CoreSpace, Knots)
}
