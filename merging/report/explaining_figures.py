"""The figures of what explains saturation, for papers and for the page alike."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from merging.report import explaining, plotting
from merging.report.analyses import ORDINALS
from merging.report.document import Panel, plot
from merging.report.plotting import BASE_NAMES, Figure, Look
from merging.report.summaries import Grid, Spread, spread
from merging.report.sweep_analysis import BETWEEN, Analysed, curves


class Axes(NamedTuple):
    """One panel: its title, the label of its values, and its lines by name."""

    title: str
    ylabel: str
    lines: Mapping[str, Mapping[float, Spread]]


class Drawing(NamedTuple):
    """A figure: panels side by side, along the sizes, along K or along a path."""

    name: str
    title: str
    caption: str
    panels: Sequence[Axes]
    along: str  # "size", "K" or "way"


_BARS = (
    " Points are means over the runs, bars run from the lowest to the highest of them."
)


def drawings(grid: Grid, found: Analysed) -> list[Drawing]:
    """Return every figure that the numbers fill, without its empty panels."""
    made = [
        *_bending(grid, found),
        _over_sizes(
            found,
            "F8",
            "Loss barriers against size",
            "How far the loss on the straight line between two models lies above the "
            "line between their losses, at most.",
            {
                words: lambda size, base, b=between: found.barrier(size, base, b)
                for between, words in BETWEEN.items()
            },
            "barrier (nats per token)",
        ),
        _over_sizes(
            found,
            "F9",
            "Weight disentanglement error against size",
            "Share of a task's examples that are answered otherwise once the other "
            "experts' task vectors are added, all scaled by α; mean over the tasks.",
            {
                f"α = {scale:g}": lambda size, base, s=scale: found.disentangled(
                    size, base, s
                )
                for scale in found.scales
            },
            "share of answers changed",
        ),
        *_coverage(grid, found),
        _over_sizes(
            found,
            "F11",
            "What an expert needs of its weights",
            "The smallest density, of those tried, of an exact global trim at which an "
            "expert keeps 99 % of its own score (mean over the experts), and the "
            "effective rank of the stack of all task vectors.",
            {
                "critical density": lambda size, base: found.values(
                    size, base, "critical_density"
                ),
                "effective rank": lambda size, base: found.at_most(
                    size, base, "effective_rank"
                ),
            },
            "",
        ),
        *_ways(found),
    ]
    kept = [d._replace(panels=[p for p in d.panels if p.lines]) for d in made]
    return [drawing for drawing in kept if drawing.panels]


def _over_sizes(
    found: Analysed,
    name: str,
    title: str,
    caption: str,
    panels: Mapping[str, Any],
    ylabel: str,
) -> Drawing:
    axes = []
    for words, of in panels.items():
        lines = {}
        for base in found.bases:
            values = {n: of(size, base) for size, n in found.sizes.items()}
            points = {n: spread(v.values()) for n, v in values.items() if v}
            if points:
                lines[BASE_NAMES[base]] = points
        axes.append(Axes(words, ylabel, lines))
    return Drawing(name, title, caption + _BARS, axes, "size")


def _shares(curve: Mapping[int, Mapping[int, float]]) -> dict[float, Spread]:
    """Return K → the share of the largest K's value, over the runs where it is above 0.

    Args:
      curve: K → run → value.
    """
    last = max(curve, default=0)
    found = {}
    for K, values in curve.items():
        own = [
            value / curve[last][run]
            for run, value in values.items()
            if curve[last].get(run, 0) > 0
        ]
        if own:
            found[float(K)] = spread(own)
    return found


def _bending(grid: Grid, found: Analysed) -> list[Drawing]:
    """The gain over K beside what the theory counts, a figure for each base."""
    made = []
    for base in found.bases:
        panels = []
        for size in found.sizes:
            each = [curves(grid, size, base, method) for method in grid.methods]
            gain = {}
            for K in grid.counts:
                own = [of[K] for of in each if K in of]
                shared = set.intersection(*map(set, own)) if own else set()
                gain[K] = {s: statistics.fmean(of[s] for of in own) for s in shared}
            lines = {
                "gain, mean of methods": _shares(gain),
                "Gaussian width": _shares(found.along(size, base, "width")),
                "effective rank": _shares(found.along(size, base, "effective_rank")),
            }
            lines = {name: points for name, points in lines.items() if points}
            if "gain, mean of methods" in lines:
                panels.append(Axes(size, "share of the value at the largest K", lines))
        made.append(
            Drawing(
                f"F7_{base}",
                f"The gain over K beside width and rank, {BASE_NAMES[base]}",
                "Each as a share of its own value at the largest K: a curve above "
                "another bends earlier. Runs that gain nothing at the largest K are "
                "left out." + _BARS,
                panels,
                "K",
            )
        )
    return made


def _coverage(grid: Grid, found: Analysed) -> list[Drawing]:
    made = []
    size = list(found.sizes)[-1]
    for base in found.bases:
        panels = []
        for name, words in explaining.COVERED.items():
            lines = {}
            for method in grid.methods:
                points = {
                    float(K): spread(values.values())
                    for K in grid.counts
                    if (values := found.covered(size, base, method, K, name))
                }
                if points:
                    lines[method] = points
            panels.append(Axes(words, "", lines))
        made.append(
            Drawing(
                f"F10_{base}",
                f"What a merge covers at {size}, {BASE_NAMES[base]}",
                "Of the difference between merge and base: the weights that it moves, "
                "how many carry it, and the mean ranks of its matrices." + _BARS,
                panels,
                "K",
            )
        )
    return made


def _ways(found: Analysed) -> list[Drawing]:
    """The loss between two models, of each kind of path, a figure for each base."""
    made = []
    for base in found.bases:
        panels = []
        for between, words in BETWEEN.items():
            lines = {}
            for size in found.sizes:
                way = found.on_the_way(size, base, between)
                if way:
                    lines[size] = {at: spread(of.values()) for at, of in way.items()}
            panels.append(Axes(words, "loss above the line (nats per token)", lines))
        made.append(
            Drawing(
                f"F13_{base}",
                f"Loss on the way between two models, {BASE_NAMES[base]}",
                "How far the loss on the straight line between two models lies above "
                "the line between their losses; mean over the paths." + _BARS,
                panels,
                "way",
            )
        )
    return made


def draw(grid: Grid, found: Analysed) -> list[Figure]:
    """Return the figures for papers."""
    with plotting.style():
        return [_drawn(d, grid, found) for d in drawings(grid, found)]


def _looks(names: Sequence[str], methods: Sequence[str]) -> dict[str, Look]:
    if set(names) <= set(methods):
        return {name: plotting.look(name, methods) for name in names}
    return {n: plotting.ordered_look(i, len(names)) for i, n in enumerate(names)}


def _names(panels: Iterable[Axes]) -> list[str]:
    return list(dict.fromkeys(name for panel in panels for name in panel.lines))


def _drawn(drawing: Drawing, grid: Grid, found: Analysed) -> Figure:
    canvas, axes = plotting.panels(1, len(drawing.panels), share=False)
    names = _names(drawing.panels)
    looks = _looks(names, grid.methods)
    for ax, panel in zip(axes[0], drawing.panels, strict=True):
        for name, points in panel.lines.items():
            plotting.line(ax, list(points), list(points.values()), looks[name])
        ax.set_title(panel.title)
        ax.set_ylabel(panel.ylabel)
        if drawing.along == "size":
            plotting.size_axis(ax, found.sizes, True)
        elif drawing.along == "way":
            ax.set_xlabel("share of the way")
        else:
            counts = sorted({int(K) for of in panel.lines.values() for K in of})
            plotting.count_axis(ax, counts, True)
    handles = [plotting.handle(plotting.label(n), looks[n]) for n in names]
    caption = drawing.caption
    return plotting.finish(canvas, drawing.name, drawing.title, caption, handles)


def panels(grid: Grid, found: Analysed) -> list[Panel]:
    """Return the same figures for the page, a panel each."""
    made = []
    for drawing in drawings(grid, found):
        names = _names(drawing.panels)
        for number, panel in enumerate(drawing.panels):
            name = f"{drawing.name}_{number}"
            title = f"{drawing.title}: {panel.title}"
            spec = _spec(drawing, panel, names, grid, found)
            made.append(Panel(name, title, drawing.caption, spec))
    return made


def _spec(
    drawing: Drawing,
    panel: Axes,
    names: Sequence[str],
    grid: Grid,
    found: Analysed,
) -> dict[str, Any]:
    traces = []
    of_methods = set(names) <= set(grid.methods)
    for name, points in panel.lines.items():
        ordinal = round(names.index(name) * (ORDINALS - 1) / max(len(names) - 1, 1))
        known = [(x, s) for x, s in points.items() if s.mean is not None]
        shown = plotting.label(name)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": shown,
                "look": ["method", name] if of_methods else ["ordinal", str(ordinal)],
                "x": [x for x, _ in known],
                "y": [s.mean for _, s in known],
                "hoverinfo": "text",
                "hovertext": [
                    f"{shown}\n{s.mean:.4g} ({s.low:.4g} to {s.high:.4g}, n {s.count})"
                    for _, s in known
                ],
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [s.high - s.mean for _, s in known],
                    "arrayminus": [s.mean - s.low for _, s in known],
                },
            }
        )
    places = sorted({x for trace in traces for x in trace["x"]})
    title = "share of the way" if drawing.along == "way" else "experts, K"
    axis: dict[str, Any] = {"title": title, "tickvals": places}
    axis["ticktext"] = [f"{x:g}" for x in places]
    if drawing.along == "size":
        sizes = found.sizes.items()
        axis = {"title": "parameters", "type": "log"}
        axis["tickvals"] = [n for _, n in sizes]
        axis["ticktext"] = [f"{size} ({plotting.human(n)})" for size, n in sizes]
    return plot(
        traces, {"xaxis": axis, "yaxis": {"title": panel.ylabel or panel.title}}
    )
