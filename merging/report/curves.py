"""The tables behind the figures: what is drawn, in numbers."""

from collections.abc import Iterable, Sequence

from merging.report import against
from merging.report.saturation import Gains, gains
from merging.report.summaries import MULTITASK, Grid, by_seed, measure, spread
from merging.report.table import CELL, SPREAD, every_cell
from merging.runtime.text import Table


def behind_figures(grid: Grid) -> dict[str, list[Table]]:
    """Figure name → the tables of what it draws."""
    ends = sorted({*grid.counts[:1], *grid.counts[-1:]})
    most = grid.counts[-1:]
    sized, counted = "against size", "against K, the experts merged"
    return {
        "F1": [curve("F1", f"Held-in ratio {sized}", grid, "held_in", ends)],
        "F1_gain": [
            curve("F1_gain", f"Normalised gain {sized}", grid, "normalised_gain", ends)
        ],
        "F2": [curve("F2", f"Held-in ratio {counted}", grid, "held_in")],
        "F3": [curve("F3", f"Held-out ratio {counted}", grid, "held_out")],
        "F4": [method_spread(grid)],
        "F5": [
            curve(f"F5_{score}", title, grid, score, most, MULTITASK)
            for score, title in (
                ("held_in", "Held-in ratio, merged and multitask"),
                ("held_out", "Held-out ratio, merged and multitask"),
            )
        ],
        "F6": [marginal_gains(grid), fits(grid)],
        "F12": [against.table(grid)],
    }


def curve(
    name: str,
    title: str,
    grid: Grid,
    score: str,
    counts: Iterable[int] | None = None,
    baselines: Sequence[str] = (),
) -> Table:
    """One score by size, base, method and K (figures F1, F2, F3, F5).

    Args:
      name: the table's name.
      title: what it shows, in words.
      grid: the experiment.
      score: an attribute of `ModelScores`.
      counts: the values of K to show; all without it.
      baselines: multitask models to list beside the merge methods.
    """
    counts = grid.counts if counts is None else counts
    rows = []
    for size, base, method, K, found in every_cell(grid):
        if (method in grid.methods and K in counts) or method in baselines:
            s = measure(found, score)
            floor = measure(found, "floor").mean
            line = (size, grid.sizes[size], base, method, K, *s)
            rows.append((*line, floor) if score == "held_in" else line)
    columns = (*CELL, *SPREAD, "floor") if score == "held_in" else (*CELL, *SPREAD)
    return Table(name, title, columns, tuple(rows))


def method_spread(grid: Grid) -> Table:
    """Best minus worst method at each size, base and K, within each seed (F4)."""
    rows = []
    for size, params in grid.sizes.items():
        for base in grid.bases:
            for K in grid.counts:
                all_methods = {
                    m: by_seed(grid.models(size, base, m, K), "held_in")
                    for m in grid.methods
                }
                present = {m: seeds for m, seeds in all_methods.items() if seeds}
                if len(present) < 2:
                    continue
                shared = set.intersection(*(set(s) for s in present.values()))
                ranges = [
                    max(s[seed] for s in present.values())
                    - min(s[seed] for s in present.values())
                    for seed in sorted(shared)
                ]
                if ranges:
                    line = (size, params, base, K, len(present))
                    rows.append((*line, *spread(ranges)[:5]))
    columns = ("size", "params", "base", "K", "methods", *SPREAD[:4], "seeds")
    title = "Spread of methods: best minus worst held-in ratio"
    return Table("F4", title, columns, tuple(rows))


def marginal_gains(grid: Grid) -> Table:
    """Gain per added expert, raw and as a share of the base-to-expert gap (F6)."""
    rows = []
    for size, base, method, raw, share in _every_gain(grid):
        for (before, K), seeds in raw.marginal.items():
            total = spread(raw.by_seed[K].values())
            line = (size, grid.sizes[size], base, method, before, K, total.mean)
            shares = share.marginal.get((before, K), {}) if share else {}
            rows.append(
                (*line, *spread(seeds.values())[:5], *spread(shares.values())[:4])
            )
    columns = ("size", "params", "base", "method", "from K", "to K", "gain so far")
    columns += tuple(f"per expert {part}" for part in (*SPREAD[:4], "seeds"))
    columns += tuple(f"share per expert {part}" for part in SPREAD[:4])
    title = "Gain over the base on all held-in datasets, per added expert"
    return Table("F6", title, columns, tuple(rows))


def fits(grid: Grid) -> Table:
    """The fitted saturation curves (F6)."""
    rows = []
    for size, base, method, raw, share in _every_gain(grid):
        own = spread(raw.saturations)
        fit = raw.fit
        means = {K: spread(seeds.values()).mean for K, seeds in raw.by_seed.items()}
        rows.append(
            (size, grid.sizes[size], base, method, fit.status, fit.points)
            + (fit.asymptote, share.fit.asymptote if share else None)
            + (fit.constant, fit.saturation, own.low, own.high, own.count)
            + (fit.r_squared, fit.rmse, max(means, key=means.get))
        )
    columns = ("size", "params", "base", "method", "fit", "points", "a (raw gain)")
    columns += ("a (share of gap)", "c (experts)", "saturation K", "lowest seed")
    columns += ("highest seed", "seeds with one", "R2", "rmse", "best K")
    title = "Fits of gain(K) = a (1 - exp(-K/c)) and the K that reaches 90 % of a"
    return Table("F6_fit", title, columns, tuple(rows))


def _every_gain(grid: Grid) -> Iterable[tuple[str, str, str, Gains, Gains | None]]:
    for size in grid.sizes:
        for base in grid.bases:
            for method in grid.methods:
                if raw := gains(grid, size, base, method, "gain"):
                    share = gains(grid, size, base, method, "normalised_gain_all")
                    yield size, base, method, raw, share
