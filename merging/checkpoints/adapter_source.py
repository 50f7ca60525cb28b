"""A LoRA adapter on its base as a checkpoint: rows of θ₀ + s·BA, made when asked for.

No matrix is ever whole: of the leaf that is being read, one factor is kept, and of the
other the rows that are needed. The bits do not depend on the cuts (`low_rank`).
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from merging.checkpoints import low_rank
from merging.checkpoints.adapter import Adapter, Module
from merging.checkpoints.source import Source, SourceFile, read_leaves
from merging.runtime import tree
from merging.runtime.errors import UserError, listed

# Elements that are made at a time, in the cache; a row, if it is longer.
_PART = 2**17


class _Term(NamedTuple):
    """What is added to a leaf: s · left @ right.

    Attributes:
      left: the tensor that holds the left factor, [rows, r].
      right: the right one's, [r, columns].
      transposed: whether the tensors hold the transposes.
      rank: r.
      scaling: s.
    """

    left: str
    right: str
    transposed: bool
    rank: int
    scaling: float


class AdapterSource:
    """A base with an adapter's sums, opened for reading.

    An adapted leaf is float32 (float64 where the base's is), whatever the base stores:
    θ₀ + s·BA is rounded once, and a small s·BA is not lost in bfloat16.

    Args:
      adapter: what is added.
      base: θ₀.
      uri: what to call it; the adapter's folder if None.
      rounded: give adapted leaves in the base's dtype instead.
      with_base: whether the base's files are this checkpoint's too.

    Raises:
      UserError: modules or leaves that the base does not have, or of other shapes; all
        are listed.
    """

    def __init__(
        self,
        adapter: Adapter,
        base: Source,
        uri: str | None = None,
        *,
        rounded: bool = False,
        with_base: bool = False,
    ):
        self.uri = uri or adapter.uri
        self.format, self.skeleton = base.format, base.skeleton
        self._adapter, self._base, self._with_base = adapter, base, with_base
        leaves = tree.flatten(base.abstract)
        self._whole, self._terms = _bound(adapter, base.uri, leaves)
        self._right: tuple[str, np.ndarray] | None = None
        for path, tensor in self._whole.items():
            leaves[path] = adapter.tensors.abstract[tensor]
        self._stored = {path: np.dtype(leaf.dtype) for path, leaf in leaves.items()}
        if not rounded:
            for path in self._terms:
                dtype = np.promote_types(np.float32, self._stored[path])
                leaves[path] = jax.ShapeDtypeStruct(leaves[path].shape, dtype)
        self._leaves = leaves
        self.abstract = tree.unflatten(leaves)

    def read(
        self, paths: Iterable[str], shardings: Mapping[str, jax.sharding.Sharding]
    ) -> dict[str, jax.Array]:
        """Return ``{path: array}``, each device's part made for it alone."""
        return read_leaves(self, paths, shardings)

    def read_into(self, path: str, start: int, out: np.ndarray) -> None:
        """Fill `out` with elements [start, start + len) of a leaf, row-major."""
        source, name = self._base, path
        if path in self._whole:
            source, name = self._adapter.tensors, self._whole[path]
        term = self._terms.get(path)
        if term is None:
            source.read_into(name, start, out)
            return
        right = self._right_of(path, term).astype(np.float64)
        columns = right.shape[1]
        stop, step = start + out.size, max(_PART // max(columns, 1), 1)
        first = start // columns if columns else 0
        last = -(-stop // columns) if columns else 0
        for row in range(first, last, step):
            rows = min(step, last - row)
            added = low_rank.product(self._left_of(path, term, row, rows), right)
            begin, end = max(start, row * columns), min(stop, (row + rows) * columns)
            part = added.reshape(-1)[begin - row * columns : end - row * columns]
            stored = np.empty(part.size, self._stored[path])
            source.read_into(name, begin, stored)
            # Added in float64, and rounded once; NumPy casts a few at a time.
            with np.errstate(invalid="ignore", over="ignore"):
                np.add(
                    part,
                    stored,
                    out=out[begin - start : end - start],
                    dtype=np.float64,
                    casting="unsafe",
                )

    def files(self) -> list[SourceFile]:
        """Return the adapter's files, and the base's before them if they are its own.

        Of a base beside the adapter, the merge lists the files itself.
        """
        base = self._base.files() if self._with_base else []
        own = self._adapter.files()
        return [
            *(file._replace(name=f"base/{file.name}") for file in base),
            *(file._replace(name=f"adapter/{file.name}") for file in own),
        ]

    def paths(self) -> dict[str, epath.Path]:
        """Return where its files are, by the names that `files` has for them."""
        base = self._base.paths() if self._with_base else {}
        own = self._adapter.paths()
        found = {f"base/{name}": path for name, path in base.items()}
        return found | {f"adapter/{name}": path for name, path in own.items()}

    def forget(self, path: str) -> None:
        """Leave a leaf out from now on."""
        del self._leaves[path]
        self.abstract = tree.unflatten(self._leaves)

    def _right_of(self, path: str, term: _Term) -> np.ndarray:
        """Return a leaf's right factor, [r, columns]; the last one is kept."""
        kept = self._right
        if kept is None or kept[0] != path:
            found = self._adapter.tensor(term.right)
            found = found.T if term.transposed else found
            self._right = kept = (path, low_rank.rounded(found, axis=0))
        return kept[1]

    def _left_of(self, path: str, term: _Term, row: int, rows: int) -> np.ndarray:
        """Return some rows of s times a leaf's left factor, [rows, r]."""
        tensors = self._adapter.tensors
        leaf = tensors.abstract[term.left]
        if not term.transposed:
            found = np.empty(rows * term.rank, leaf.dtype)
            tensors.read_into(term.left, row * term.rank, found)
            return _scaled(found.reshape(rows, term.rank), term.scaling)
        found = np.empty((term.rank, rows), leaf.dtype)
        for k in range(term.rank):
            tensors.read_into(term.left, k * leaf.shape[1] + row, found[k])
        return _scaled(found.T, term.scaling)


def _scaled(left: np.ndarray, scaling: float) -> np.ndarray:
    """Return rows of a left factor times s, ready for the product."""
    with np.errstate(over="ignore", invalid="ignore"):
        return low_rank.rounded(left.astype(np.float64) * scaling, axis=1)


def _bound(
    adapter: Adapter, base: str, leaves: Mapping[str, jax.ShapeDtypeStruct]
) -> tuple[dict[str, str], dict[str, _Term]]:
    """Return {leaf: the tensor in its place} and {leaf: what is added to it}."""
    name = base_names(adapter, leaves)
    missing, wrong = [], []
    whole = {name(leaf): tensor for leaf, tensor in adapter.whole.items()}
    for leaf, tensor in whole.items():
        if leaf not in leaves:
            missing.append(leaf)
        elif (shape := adapter.tensors.abstract[tensor].shape) != leaves[leaf].shape:
            wrong.append(f"{leaf} {list(shape)} for {list(leaves[leaf].shape)}")
    terms = {}
    for module, factors in adapter.modules.items():
        leaf = name(f"{module}.weight")
        if leaf not in leaves:
            missing.append(leaf)
            continue
        term = _term(adapter, factors, leaves[leaf].shape)
        if term is None:
            shape = [factors.outputs, factors.inputs]
            wrong.append(f"{leaf}: BA {shape} for {list(leaves[leaf].shape)}")
        else:
            terms[leaf] = term
    _refuse(adapter, base, missing, wrong)
    return whole, terms


def base_names(adapter: Adapter, leaves: Iterable[str]):
    """Return a function from an adapter's names of leaves to the base's.

    They are the same, or the base was saved without the first part (GPT-2's
    `transformer.`).
    """
    have = set(leaves)
    given = [*adapter.whole, *(f"{module}.weight" for module in adapter.modules)]

    def shorter(leaf: str) -> str:
        return leaf.partition(".")[2]

    if not have.issuperset(given) and have.issuperset(map(shorter, given)):
        return shorter
    return lambda leaf: leaf


def _term(adapter: Adapter, module: Module, shape: tuple[int, ...]) -> _Term | None:
    """Return a leaf's term, if BA or its transpose has the leaf's shape."""
    plain, turned = (module.outputs, module.inputs), (module.inputs, module.outputs)
    fits, fits_turned = shape == plain, shape == turned
    if module.embedding:
        fits = False
    elif fits and fits_turned:
        # A square one goes by the config; of others, the shape tells.
        fits = not adapter.config.fan_in_fan_out
    if not fits and not fits_turned:
        return None
    left, right = (module.b, module.a) if fits else (module.a, module.b)
    return _Term(left, right, not fits, module.rank, module.scaling)


def _refuse(adapter: Adapter, base: str, missing: list[str], wrong: list[str]) -> None:
    if not missing and not wrong:
        return
    hint = adapter.config.base
    advice = "Name the base that it was trained on, as transformers saves it"
    advice += f" (it says {hint})." if hint else "."
    if any(leaf.endswith("lm_head.weight") for leaf in missing):
        advice += " Where lm_head is tied to the embedding, save the base untied."
    if any("embed" in line for line in wrong):
        advice += " For a vocabulary of another size, resize the base's first."
    lines = [f"{leaf} is not there" for leaf in missing] + wrong
    raise UserError(
        f"the adapter {adapter.uri} does not fit the base {base}: {listed(lines)}. "
        f"{advice}"
    )
