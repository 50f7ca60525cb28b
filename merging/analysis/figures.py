"""The figures of an analysis, drawn of its rows, in the style of the report's."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from merging.analysis.rows import Row
from merging.report import plotting
from merging.report.plotting import Figure
from merging.runtime import storage

FOLDER = "figures"
# A law's figure takes a second to draw; rows hold the rest.
MOST_LAWS = 12


class Curve(NamedTuple):
    """Points of a line, with intervals where they are known; None leaves a gap."""

    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()


class Panel(NamedTuple):
    """One panel: its axes' labels, and its curves by name."""

    xlabel: str
    ylabel: str
    curves: Mapping[str, Curve]


def write(workdir: Path, figures: Iterable[Figure]) -> list[Path]:
    """Write figures as PNG and SVG into a workdir's `FOLDER`."""
    paths = []
    for figure in figures:
        for suffix, data in (("png", figure.png), ("svg", figure.svg)):
            path = workdir / FOLDER / f"{figure.name}.{suffix}"
            paths.append(storage.write_bytes(path, data))
    return paths


def of_rows(rows: Iterable[Row], quantity: str, **wanted: object) -> Curve:
    """Return the rows of a quantity, along `at`, as a curve."""
    chosen = [
        row
        for row in rows
        if row.quantity == quantity
        and all(getattr(row, key) == value for key, value in wanted.items())
    ]
    names = ("value", "low", "high")
    return Curve(
        [row.at for row in chosen], *([getattr(r, n) for r in chosen] for n in names)
    )


def curves(name: str, title: str, caption: str, panels: Sequence[Panel]) -> Figure:
    """Draw panels beside each other, one legend for all."""
    with plotting.style():
        canvas, axes = plotting.panels(1, len(panels), share=False)
        names = list(dict.fromkeys(n for panel in panels for n in panel.curves))
        looks = {n: plotting.ordered_look(i, len(names)) for i, n in enumerate(names)}
        for ax, panel in zip(axes[0], panels, strict=True):
            for label, curve in panel.curves.items():
                _draw(ax, curve, looks[label])
            ax.set_xlabel(panel.xlabel)
            ax.set_ylabel(panel.ylabel)
        handles = [plotting.handle(n, looks[n]) for n in names]
        return plotting.finish(canvas, name, title, caption, handles)


def _draw(ax, curve: Curve, look: plotting.Look) -> None:
    known = [i for i, y in enumerate(curve.y) if y is not None]
    x, y = [curve.x[i] for i in known], [curve.y[i] for i in known]
    ax.plot(x, y, **look._asdict())
    if curve.low and all(curve.low[i] is not None for i in known):
        low, high = [curve.low[i] for i in known], [curve.high[i] for i in known]
        ax.fill_between(x, low, high, color=look.color, alpha=0.2, linewidth=0)


def of_geometry(rows: Sequence[Row]) -> list[Figure]:
    """Return the cosines between all vectors, and what changes over the depth."""
    drawn = [_heat([row for row in rows if row.by == "model"])]
    layers = sorted({row.layer for row in rows if row.by == "layer"})
    if len(layers) > 1:
        drawn.append(_depth(rows, layers))
    return drawn


def _heat(rows: Sequence[Row]) -> Figure:
    norms = {row.of[0]: row.value for row in rows if row.quantity == "norm"}
    names = list(norms)
    # No direction, no cosine: 0, as everywhere.
    cosines = np.diag([float(length > 0) for length in norms.values()])
    for row in rows:
        if row.quantity == "cosine":
            i, j = map(names.index, row.of)
            cosines[i, j] = cosines[j, i] = row.value
    with plotting.style():
        canvas, axes = plotting.panels(1, 1, height=3.6)
        ax = axes[0][0]
        image = ax.imshow(cosines, vmin=-1, vmax=1, cmap="RdBu_r")
        ax.set_xticks(range(len(names)), names, rotation=45, ha="right")
        ax.set_yticks(range(len(names)), names)
        ax.grid(False)
        if len(names) <= 12:
            for (i, j), value in np.ndenumerate(cosines):
                dark = abs(value) > 0.6
                color = "white" if dark else "black"
                ax.text(j, i, f"{value:.2f}", ha="center", va="center", color=color)
        canvas.colorbar(image, ax=ax)
        caption = "Cosines of task vectors, over the whole model."
        handle = plotting.reference_handle("cosine of task vectors")
        return plotting.finish(canvas, "cosines", "Cosines", caption, [handle])


def _depth(rows: Sequence[Row], layers: Sequence[int]) -> Figure:
    def means(quantity: str) -> Curve:
        values = []
        for layer in layers:
            of = [
                row.value
                for row in rows
                if row.quantity == quantity
                and (row.by, row.layer) == ("layer", layer)
                and row.value is not None
            ]
            values.append(float(np.mean(of)) if of else None)
        return Curve(layers, values)

    panels = [
        Panel(
            "layer",
            "mean over pairs",
            {
                "cosine": means("cosine"),
                "sign disagreement": means("sign_disagreement"),
                "overlap of kept supports": means("kept_overlap"),
            },
        ),
        Panel(
            "layer",
            "directions",
            {
                "effective rank": means("effective_rank"),
                "stable rank": means("stable_rank"),
            },
        ),
        Panel("layer", "mean length", {"norm": means("norm")}),
    ]
    panels[0] = panels[0]._replace(
        curves={
            name: curve
            for name, curve in panels[0].curves.items()
            if any(value is not None for value in curve.y)
        }
    )
    caption = "Geometry of the task vectors, layer by layer."
    return curves("depth", "Geometry over the depth", caption, panels)


def of_law(rows: Sequence[Row], ylabel: str) -> list[Figure]:
    """Return a figure for each group of a law: what was observed, and the law, by N.

    Args:
      rows: of `merging fit`; the groups beyond the first `MOST_LAWS` are not drawn.
      ylabel: what the law is of.
    """
    groups = dict.fromkeys(row.of[0] for row in rows if row.quantity == "observed")
    drawn = []
    for number, group in enumerate(list(groups)[:MOST_LAWS]):
        own = [row for row in rows if row.of[0] == group]
        sizes = dict.fromkeys(r.of[1] for r in own if r.quantity == "observed")
        seen = [_panel_of_law(group, N, own, ylabel) for N in sizes]
        caption = "Means over runs, the law fitted to them, and what was not seen."
        title = f"Law of {group}"
        drawn.append(curves(f"law_{number}", title, caption, seen))
    return drawn


def _panel_of_law(group: str, N: str, own: Sequence[Row], ylabel: str) -> Panel:
    found = {
        "observed": of_rows(own, "observed", of=(group, N)),
        "law": of_rows(own, "fitted", of=(group, N)),
    }
    predicted = "held_out_predicted"
    for test in dict.fromkeys(r.of[1] for r in own if r.quantity == predicted):
        curve = of_rows(own, predicted, of=(group, test, N))
        if curve.x:
            found[test] = curve
    return Panel(f"K (N = {plotting.human(int(float(N)))})", ylabel, found)
