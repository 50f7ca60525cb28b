"""Figures F1-F6 and F12; one that the rows cannot fill is not drawn."""

from collections.abc import Callable, Iterable, Sequence

from merging.report import against, curves, plotting
from merging.report.plotting import Figure, Look
from merging.report.saturation import Gains, gains
from merging.report.summaries import MULTITASK, Grid, Spread, measure, spread

_BARS = (
    " Points are means, bars run from the lowest to the highest value over seeds "
    "and expert subsets (no bar: one value)."
)
_HELD_IN = (
    "Held-in ratio: mean over the merged experts' tasks of the merged model's score "
    "divided by that task's expert's. The dashed grey line is the floor: the same "
    "ratio for the unmerged base."
)
_NORMALISED_GAIN = (
    "Normalised gain: how much of the way from the base's mean raw score to the "
    "experts' the merge gets (0: no better than the base, 1: as good as the experts)."
)
_HELD_OUT = (
    "Held-out ratio: mean over held-out tasks of the merged model's score divided by "
    "the unmerged base's (1, the dashed grey line: as good as the base)."
)


def draw(grid: Grid) -> list[Figure]:
    """Draw every figure that the grid has data for, in order."""
    drawers: Sequence[Callable[[Grid], Figure | None]] = (
        lambda g: _against_size(
            g, "F1", "held_in", "Held-in ratio against size", _HELD_IN
        ),
        lambda g: _against_size(
            g,
            "F1_gain",
            "normalised_gain",
            "Normalised gain against size",
            _NORMALISED_GAIN,
        ),
        lambda g: _against_count(
            g, "F2", "held_in", "Held-in ratio against K, the experts merged", _HELD_IN
        ),
        lambda g: _against_count(
            g,
            "F3",
            "held_out",
            "Held-out ratio against K, the experts merged",
            _HELD_OUT,
        ),
        _methods_spread,
        _multitask,
        lambda g: _gains(g, "F6", "gain", "raw score"),
        lambda g: _gains(g, "F6_normalised", "normalised_gain_all", "share of gap"),
        against.draw,
    )
    with plotting.style():
        figures = [drawer(grid) for drawer in drawers]
    return [figure for figure in figures if figure is not None]


def _against_size(
    grid: Grid, name: str, score: str, title: str, caption: str
) -> Figure | None:
    """Rows: the smallest and the largest K; columns: bases; x: size."""
    counts = sorted({*grid.counts[:1], *grid.counts[-1:]})
    if not _any(grid, score, counts):
        return None
    canvas, axes = plotting.panels(len(counts), len(grid.bases), width=3.8)
    for row, K in enumerate(counts):
        for column, base in enumerate(grid.bases):
            ax = axes[row, column]
            if score == "held_in":
                floors = [_floor(grid, size, base, K) for size in grid.sizes]
                plotting.reference(ax, list(grid.sizes.values()), floors)
            _lines_over_size(ax, grid, base, grid.methods, K, score)
            ax.set_title(f"{plotting.BASE_NAMES[base]}, K = {K}")
    ylabels = [caption.partition(":")[0]] * len(counts)
    plotting.tidy(
        axes, ylabels, lambda ax, low: plotting.size_axis(ax, grid.sizes, low)
    )
    extra = [plotting.reference_handle("floor: base / expert")]
    handles = _handles(grid.methods) + (extra if score == "held_in" else [])
    return plotting.finish(canvas, name, title, caption + _BARS, handles)


def _against_count(
    grid: Grid, name: str, score: str, title: str, caption: str
) -> Figure | None:
    """Rows: bases; columns: sizes; x: K."""
    if not _any(grid, score, grid.counts):
        return None
    canvas, axes = plotting.panels(len(grid.bases), len(grid.sizes))
    for row, base in enumerate(grid.bases):
        for column, size in enumerate(grid.sizes):
            ax = axes[row, column]
            for index, method in enumerate(grid.methods):
                scores = [
                    measure(grid.models(size, base, method, K), score)
                    for K in grid.counts
                ]
                shift = 0.12 * plotting.dodge(index, len(grid.methods))
                x = [K + shift for K in grid.counts]
                plotting.line(ax, x, scores, plotting.look(method, grid.methods))
            if ax.has_data():
                floors = [
                    1.0 if score == "held_out" else _floor(grid, size, base, K)
                    for K in grid.counts
                ]
                plotting.reference(ax, grid.counts, floors)
            ax.set_title(f"{size} ({plotting.human(grid.sizes[size])}), {base.upper()}")
    ylabels = [caption.partition(":")[0]] * len(grid.bases)
    plotting.tidy(
        axes, ylabels, lambda ax, low: plotting.count_axis(ax, grid.counts, low)
    )
    what = "the base: 1" if score == "held_out" else "floor: base / expert"
    handles = [*_handles(grid.methods), plotting.reference_handle(what)]
    return plotting.finish(canvas, name, title, caption + _BARS, handles)


def _methods_spread(grid: Grid) -> Figure | None:
    """Columns: bases; x: size; one line per K."""
    table = curves.method_spread(grid)
    if not table.rows:
        return None
    bases = [base for base in grid.bases if any(r[2] == base for r in table.rows)]
    counts = [K for K in grid.counts if any(r[3] == K for r in table.rows)]
    canvas, axes = plotting.panels(1, len(bases), width=3.8, height=2.9)
    for ax, base in zip(axes.flat, bases, strict=True):
        for index, K in enumerate(counts):
            found = [r for r in table.rows if (r[2], r[3]) == (base, K)]
            shift = 10 ** (0.02 * plotting.dodge(index, len(counts)))
            scores = [Spread(*r[5:9], r[9], 0) for r in found]
            style = plotting.ordered_look(index, len(counts))
            plotting.line(ax, [r[1] * shift for r in found], scores, style)
        ax.set_title(plotting.BASE_NAMES[base])
        ax.set_ylim(bottom=0)
    ylabels = ["best minus worst method"]
    plotting.tidy(
        axes, ylabels, lambda ax, low: plotting.size_axis(ax, grid.sizes, low)
    )
    handles = [
        plotting.handle(f"K = {K}", plotting.ordered_look(index, len(counts)))
        for index, K in enumerate(counts)
    ]
    caption = (
        "Do the methods converge? The best method's held-in ratio minus the worst's, "
        "within each seed; bars run from the lowest to the highest seed."
    )
    return plotting.finish(canvas, "F4", table.title, caption, handles)


def _multitask(grid: Grid) -> Figure | None:
    """Rows: held-in, held-out; columns: bases; x: size; the largest K only."""
    kinds = [
        kind
        for kind in MULTITASK
        if any(grid.models(s, b, kind) for s in grid.sizes for b in grid.bases)
    ]
    if not kinds or not grid.counts:
        return None
    K = grid.counts[-1]
    rows = [s for s in ("held_in", "held_out") if _any(grid, s, [K])]
    if not rows:
        return None
    canvas, axes = plotting.panels(len(rows), len(grid.bases), width=3.8, share="row")
    for row, score in enumerate(rows):
        for column, base in enumerate(grid.bases):
            ax = axes[row, column]
            _lines_over_size(ax, grid, base, (*grid.methods, *kinds), K, score)
            if ax.has_data() and score == "held_out":
                plotting.reference(
                    ax, list(grid.sizes.values()), [1.0] * len(grid.sizes)
                )
            ax.set_title(f"{plotting.BASE_NAMES[base]}, {score.replace('_', '-')}")
    ylabels = [f"{score.replace('_', '-').capitalize()} ratio" for score in rows]
    plotting.tidy(
        axes, ylabels, lambda ax, low: plotting.size_axis(ax, grid.sizes, low)
    )
    caption = (
        f"Merges of {K} experts against one model trained on all held-in tasks, for a "
        "fixed number of steps and stopped early on validation loss. Held-in: score "
        "over the expert's; held-out: score over the base's (dashed grey line)." + _BARS
    )
    title = f"Merged (K = {K}) against multitask training"
    handles = [
        *_handles((*grid.methods, *kinds)),
        plotting.reference_handle("held-out: the base, 1"),
    ]
    return plotting.finish(canvas, "F5", title, caption, handles)


def _gains(grid: Grid, name: str, score: str, unit: str) -> Figure | None:
    """Rows: for each base gains, then marginal gains; columns: sizes; x: K."""
    found = {
        (size, base, method): g
        for size in grid.sizes
        for base in grid.bases
        for method in grid.methods
        if (g := gains(grid, size, base, method, score)) is not None
    }
    if not found:
        return None
    bases = [base for base in grid.bases if any(key[1] == base for key in found)]
    # Gains and marginal gains differ in scale: each row has its own axis.
    canvas, axes = plotting.panels(
        2 * len(bases), len(grid.sizes), height=2.1, share="row"
    )
    for number, base in enumerate(bases):
        for column, size in enumerate(grid.sizes):
            pair = axes[2 * number : 2 * number + 2, column]
            for index, method in enumerate(grid.methods):
                if curve := found.get((size, base, method)):
                    shift = 0.1 * plotting.dodge(index, len(grid.methods))
                    style = plotting.look(method, grid.methods)
                    _gain_curve(*pair, curve, style, shift)
            human = plotting.human(grid.sizes[size])
            pair[0].set_title(f"{size} ({human}), {base.upper()}")
    ylabels = [f"gain over base\n({unit})", f"gain per added\nexpert ({unit})"]
    plotting.tidy(
        axes,
        ylabels * len(bases),
        lambda ax, low: plotting.count_axis(ax, (0, *grid.counts), low),
    )
    caption = (
        "Mean over all held-in datasets, merged or not, above the unmerged base (K = "
        f"0), as {unit}. Upper rows: the gain; lower rows: the gain per expert added "
        "since the point before, drawn half-way between them. Lines are fits of "
        "a (1 - exp(-K/c)) and their slopes; a ring marks the saturation point, "
        "90 % of a, where the fit is good and reaches it within the range. Where no "
        "line is drawn nothing could be fitted (table F6_fit says which)." + _BARS
    )
    title = f"Gain and marginal gain per added expert ({unit}), all held-in datasets"
    handles = [*_handles(grid.methods), _ring_handle()]
    return plotting.finish(canvas, name, title, caption, handles)


_RING = {
    "marker": "o",
    "markersize": 9,
    "markerfacecolor": "none",
    "markeredgecolor": "black",
    "linestyle": "none",
}


def _gain_curve(above, below, curve: Gains, style: Look, shift: float) -> None:
    counts = list(curve.by_seed)
    means = [spread(curve.by_seed[K].values()) for K in counts]
    steps = [spread(seeds.values()) for seeds in curve.marginal.values()]
    middles = [(before + K) / 2 for before, K in curve.marginal]
    plotting.line(above, [K + shift for K in counts], means, style, connect=False)
    plotting.line(below, [x + shift for x in middles], steps, style, connect=False)
    below.axhline(0, color="#999999", linewidth=0.8)
    above.axhline(0, color="#999999", linewidth=0.8)
    fit = curve.fit
    if not fit.quotable:
        return
    fine = [counts[-1] * step / 60 for step in range(61)]
    above.plot(fine, [fit.gain(K) for K in fine], color=style.color)
    inside = [K for K in fine if K >= middles[0]]
    below.plot(inside, [fit.marginal(K) for K in inside], color=style.color)
    if fit.saturation is not None and fit.saturation <= counts[-1]:
        ring = _RING | {"markeredgecolor": style.color}
        above.plot([fit.saturation], [fit.gain(fit.saturation)], **ring)


def _ring_handle():
    from matplotlib.lines import Line2D

    return Line2D([], [], label="saturation point (90 % of a)", **_RING)


def _lines_over_size(
    ax, grid: Grid, base: str, methods: Sequence[str], K: int, score: str
) -> None:
    for index, method in enumerate(methods):
        count = None if method in MULTITASK else K
        scores = [
            measure(grid.models(s, base, method, count), score) for s in grid.sizes
        ]
        shift = 10 ** (0.035 * plotting.dodge(index, len(methods)))
        x = [params * shift for params in grid.sizes.values()]
        plotting.line(ax, x, scores, plotting.look(method, grid.methods))


def _floor(grid: Grid, size: str, base: str, K: int) -> float | None:
    """Mean floor of a panel's merges: the methods share their experts, hence floors."""
    models = [m for method in grid.methods for m in grid.models(size, base, method, K)]
    return measure(models, "floor").mean


def _any(grid: Grid, score: str, counts: Iterable[int]) -> bool:
    return any(
        measure(models, score).count
        for cell, models in grid.cells.items()
        if cell.method in grid.methods and cell.K in counts
    )


def _handles(methods: Sequence[str]) -> list:
    return [
        plotting.handle(plotting.label(m), plotting.look(m, methods)) for m in methods
    ]
