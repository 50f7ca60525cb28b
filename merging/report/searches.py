"""The picture of a search: its history, and a slice for each number it varied."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from merging.report import plotting
from merging.report.plotting import Figure

_COLUMNS = 4
MOST = 32  # slices; more are told of in the caption
_EACH, _BEST, _GRID = "#9ECAE1", "#041E42", "#D55E00"


class Point(NamedTuple):
    """A trial: its number, {label: number} of what was varied, and the objective."""

    number: int
    values: Mapping[str, float]
    objective: float


def search_figure(points: Sequence[Point], reference: float | None = None) -> Figure:
    """Draw every trial and the best so far, and the objective over each number.

    Args:
      points: the trials, in their order.
      reference: an objective to be read against, task arithmetic's by a grid of λ.
    """
    labels = list(points[0].values)
    shown = labels[:MOST]
    cells = 1 + len(shown)
    columns = min(cells, _COLUMNS)
    with plotting.style():
        canvas, axes = plotting.panels(-(-cells // columns), columns, width=2.6)
        history, *slices = axes.flat
        objective = [point.objective for point in points]
        numbers = [point.number for point in points]
        history.plot(numbers, objective, "o", color=_EACH, markersize=3)
        so_far = [max(objective[: i + 1]) for i in range(len(objective))]
        history.step(numbers, so_far, where="post", color=_BEST)
        history.set_xlabel("trial")
        best = objective.index(max(objective))
        # In the order of the trials: the lighter, the earlier.
        for ax, label in zip(slices, shown, strict=False):
            at = [point.values[label] for point in points]
            ax.scatter(at, objective, c=numbers, cmap="Blues", vmin=-len(points), s=9)
            ax.plot(at[best], objective[best], "*", color=_GRID, markersize=9)
            ax.set_xlabel(label if len(label) < 36 else f"{label[:34]}…")
        for ax in slices[len(shown) :]:
            ax.remove()
        for row in axes:
            row[0].set_ylabel("objective (validation)")
        handles = [
            plotting.handle("trial", plotting.Look(_EACH, "o", "none")),
            plotting.handle("best so far", plotting.Look(_BEST, "", "-")),
            plotting.handle("the best", plotting.Look(_GRID, "*", "none")),
        ]
        if reference is not None:
            for ax in (history, *slices[: len(shown)]):
                ends = ax.get_xlim()
                plotting.reference(ax, ends, [reference, reference])
                ax.set_xlim(ends)
            handles.append(plotting.reference_handle("task arithmetic, λ by the grid"))
        more = f"; {len(labels) - len(shown)} more not drawn" if labels > shown else ""
        caption = f"{len(points)} trials: history, and slices through the space{more}."
        title = f"Search: {len(points)} trials in {len(labels)} dimensions"
        return plotting.finish(canvas, "search", title, caption, handles)
