"""The numbers of a sweep's analyses, and what they say beside the sweep's own curves.

Of `merging analyze --config analyze/sweep`; the claims about them are in `explaining`.
"""

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from merging.report.analyses import Found
from merging.report.saturation import points
from merging.report.summaries import Grid
from merging.runtime.text import Table

# A further expert counts as bringing nothing when it brings less than this share of
# what the first did.
NOTHING = 0.05
THEORIES = {
    "parameters": "K* of the kinematic formula, in all parameters",
    "coordinates": "K* of it, in the coordinates that carry the stack",
    "width": "marginal Gaussian width",
    "rank": "marginal effective rank",
}
BETWEEN = {
    "experts": "expert → expert",
    "base": "base → merge",
    "merge": "expert → merge",
}
BySeed = dict[int, float]


class Analysed:
    """The numbers of a sweep's analyses, by size and base, and then by seed.

    Args:
      rows: of "sweep" analyses, one or several.

    Attributes:
      sizes: size → parameters, smallest first.
      bases: those that are there, PT first.
    """

    def __init__(self, rows: Iterable[Found]):
        self._rows: dict[tuple[str, str], dict[str, dict[int, list[Found]]]] = {}
        sizes: dict[str, int] = {}
        for row in rows:
            size, base, seed = row.group.split("/")
            if row.quantity == "params" and row.value is not None:
                sizes[size] = int(row.value)
            of = self._rows.setdefault((size, base), {}).setdefault(row.quantity, {})
            of.setdefault(int(seed.removeprefix("seed")), []).append(row)
        self.sizes = dict(sorted(sizes.items(), key=lambda of: of[1]))
        have = {base for _, base in self._rows}
        self.bases = tuple(base for base in ("pt", "it") if base in have)

    def values(
        self,
        size: str,
        base: str,
        quantity: str,
        wanted: Callable[[Found], bool] = lambda row: True,
    ) -> BySeed:
        """Return seed → the mean over the rows of a quantity that are wanted."""
        found = {}
        for seed, rows in self._rows.get((size, base), {}).get(quantity, {}).items():
            known = [r.value for r in rows if r.value is not None and wanted(r)]
            if known:
                found[seed] = statistics.fmean(known)
        return dict(sorted(found.items()))

    def ends(
        self,
        size: str,
        base: str,
        quantity: str,
        wanted: Callable[[Found], bool] = lambda row: True,
    ) -> dict[int, tuple[float, float]]:
        """Return seed → mean lower and upper ends, of the rows that have a value.

        A missing lower end is the value, a missing upper end infinity.
        """
        found = {}
        for seed, rows in self._rows.get((size, base), {}).get(quantity, {}).items():
            known = [r for r in rows if r.value is not None and wanted(r)]
            if known:
                lows = (r.value if r.low is None else r.low for r in known)
                highs = (float("inf") if r.high is None else r.high for r in known)
                found[seed] = statistics.fmean(lows), statistics.fmean(highs)
        return dict(sorted(found.items()))

    def along(self, size: str, base: str, quantity: str) -> dict[int, dict[int, float]]:
        """Return K → seed → value, of a quantity along K."""
        found: dict[int, dict[int, float]] = {}
        for seed, rows in self._rows.get((size, base), {}).get(quantity, {}).items():
            for row in rows:
                if row.at is not None and row.value is not None and row.by == "":
                    found.setdefault(int(row.at), {})[seed] = row.value
        return dict(sorted(found.items()))

    def at_most(self, size: str, base: str, quantity: str) -> BySeed:
        """Return seed → a quantity along K at the largest K."""
        curve = self.along(size, base, quantity)
        return curve[max(curve)] if curve else {}

    def barrier(self, size: str, base: str, between: str) -> BySeed:
        """Return seed → mean height of the loss barriers of a kind of `BETWEEN`."""
        return self.values(
            *(size, base, "loss_barrier"), lambda row: _between(row.of) == between
        )

    def on_the_way(self, size: str, base: str, between: str) -> dict[float, BySeed]:
        """Return share of the way → seed → loss above the line between the ends.

        Means over the paths of a kind of `BETWEEN`.
        """
        found: dict[float, BySeed] = {}
        for seed, rows in self._rows.get((size, base), {}).get("loss", {}).items():
            paths: dict[tuple[str, ...], dict[float, float]] = {}
            for row in rows:
                if _between(row.of) == between:
                    paths.setdefault(tuple(row.of), {})[row.at] = row.value
            for share in {share for path in paths.values() for share in path}:
                above = [
                    path[share] - ((1 - share) * path[0.0] + share * path[1.0])
                    for path in paths.values()
                ]
                found.setdefault(share, {})[seed] = statistics.fmean(above)
        return dict(sorted(found.items()))

    def disentangled(self, size: str, base: str, scale: float) -> BySeed:
        """Return seed → ξ at α = scale, the mean over the experts."""
        return self.values(
            *(size, base, "disentanglement_error"),
            lambda row: bool(row.of) and row.at == scale,
        )

    def covered(self, size: str, base: str, method: str, K: int, of: str) -> BySeed:
        """Return seed → a quantity of a merge; coordinates as a share of all."""
        name = f"{method}_K{K}"
        found = self.values(
            size, base, of, lambda row: tuple(row.of) == (name,) and row.by == "model"
        )
        whole = self.sizes[size] if of == "coordinates" else 1
        return {seed: value / whole for seed, value in found.items()}

    @property
    def scales(self) -> tuple[float, ...]:
        """The α at which ξ was measured."""
        every = (of.get("disentanglement_error", {}) for of in self._rows.values())
        return tuple(
            sorted({r.at for of in every for rows in of.values() for r in rows})
        )


def _between(path: Sequence[str]) -> str:
    """Return which of `BETWEEN` a path is; "" where it is none."""
    start, end = path
    if start == "base":
        # The multitask model is no merge.
        return "base" if _is_merge(end) else ""
    return "merge" if _is_merge(end) else "experts"


def _is_merge(name: str) -> bool:
    return name.rpartition("_K")[2].isdigit() and "_K" in name


def measured(curve: Mapping[int, float]) -> int | None:
    """Return the first K that brings less than `NOTHING` of what the first brought.

    Args:
      curve: K → gain over the base; the base, at K = 0, has none.

    Returns:
      K; 0 where the first experts bring nothing; None where none is reached.
    """
    before, below, first = 0, 0.0, None
    for K, gain in sorted(curve.items()):
        each = (gain - below) / (K - before)
        if first is None:
            first = each
            if first <= 0:
                return 0
        elif each < NOTHING * first:
            return K
        before, below = K, gain
    return None


def predicted(
    found: Analysed, size: str, base: str
) -> dict[str, dict[int, tuple[float, float]]]:
    """Return theory → seed → the smallest and largest K at which it has saturation.

    K* may lie anywhere between its ends. Infinity stands for none of the K that were
    looked at.
    """
    made = {
        name: found.ends(
            size, base, "threshold", lambda row, name=name: tuple(row.of) == (name,)
        )
        for name in ("parameters", "coordinates")
    }
    # Both of the run's own order of experts, as its merges are.
    for name, quantity in (("width", "width"), ("rank", "effective_rank")):
        curve = found.along(size, base, quantity)
        seeds = {seed for values in curve.values() for seed in values}
        made[name] = {}
        for seed in sorted(seeds):
            own = {K: v[seed] for K, v in curve.items() if seed in v}
            made[name][seed] = (float(measured(own) or "inf"),) * 2
    return made


def curves(grid: Grid, size: str, base: str, method: str) -> dict[int, BySeed]:
    """Return K → seed → gain over the base on all held-in datasets."""
    return points(grid, size, base, method, "gain")


def of_seed(curve: Mapping[int, Mapping[int, float]], seed: int) -> dict[int, float]:
    """Return K → value of one run."""
    return {K: values[seed] for K, values in curve.items() if seed in values}


def step(K: float, counts: Iterable[int]) -> int:
    """Return the number of the grid's steps before K: those of one step are alike."""
    return sum(K > count for count in counts)


def table(grid: Grid, found: Analysed) -> Table:
    """Return what was measured and predicted of each size, base and run."""
    columns = ("size", "parameters", "base", "run", "curves", "saturate", "median K")
    columns += tuple(f"K by {name}" for name in THEORIES)
    columns += ("critical density", "effective rank")
    columns += tuple(f"barrier {words}" for words in BETWEEN.values())
    columns += tuple(f"disentanglement error, α {scale:g}" for scale in found.scales)
    rows = [
        (size, params, base, seed, *_line(grid, found, size, base, seed))
        for size, params in found.sizes.items()
        for base in found.bases
        for seed in sorted(found.values(size, base, "params"))
    ]
    title = "Saturation, measured and predicted"
    return Table("saturation", title, columns, tuple(rows))


def _line(
    grid: Grid, found: Analysed, size: str, base: str, seed: int
) -> Iterator[float | str | None]:
    """Yield the cells of a run: how many curves saturate, and what the theory says."""
    own = [of_seed(curves(grid, size, base, method), seed) for method in grid.methods]
    seen = [measured(curve) for curve in own if len(curve) > 1]
    at = sorted(K or float("inf") for K in seen if K != 0)
    yield len(at)
    yield sum(K < float("inf") for K in at)
    yield _finite(statistics.median_low(at) if at else None)
    for says in predicted(found, size, base).values():
        yield _range(says.get(seed))
    yield found.values(size, base, "critical_density").get(seed)
    yield found.at_most(size, base, "effective_rank").get(seed)
    for between in BETWEEN:
        yield found.barrier(size, base, between).get(seed)
    for scale in found.scales:
        yield found.disentangled(size, base, scale).get(seed)


def _range(ends: tuple[float, float] | None) -> float | str | None:
    """Return a range of K as a table has it."""
    if ends is None:
        return None
    low, high = ends
    if low == high:
        return _finite(low)
    return f"{low:g} to " + ("beyond" if high == float("inf") else f"{high:g}")


def _finite(K: float | None) -> float | str | None:
    """Return a K as a table has it: beyond those that were looked at, in words."""
    return "beyond" if K == float("inf") else K
