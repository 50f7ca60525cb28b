"""How every figure looks: colours, panels, error bars, and bytes that do not change.

matplotlib is imported inside functions only: it costs most of a second, and the
command line must start without it.
"""

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from merging.report.summaries import Spread

# Okabe and Ito's palette, told apart with any colour vision; shapes differ as well,
# so that print in grey works too. A method looks the same in every figure.
_LOOKS = {
    "average": ("#0072B2", "o", "-"),
    "task_arithmetic": ("#D55E00", "s", "-"),
    "ties": ("#009E73", "^", "-"),
    "dare": ("#56B4E9", "P", "-"),
    "dare_ties": ("#CC79A7", "D", "-"),
    "rht": ("#E69F00", "v", "-"),
    "multitask": ("#000000", "X", "--"),
    "multitask_early": ("#777777", "*", ":"),
    "base": ("#777777", "_", ":"),
    "expert": ("#000000", "|", ":"),
}
_SPARE = (
    ("#661100", "<"),
    ("#332288", ">"),
    ("#AA4499", "p"),
    ("#117733", "h"),
    ("#999933", "8"),
    ("#882255", "d"),
)
_SPARE_LINES = ("-", "--", ":", "-.")
# Blues from light to dark for an ordered quantity (K).
_ORDERED = ("#9ECAE1", "#4292C6", "#08519C", "#041E42")
_SHAPES = "osD^vP"

BASE_NAMES = {"pt": "PT (pretrained)", "it": "IT (instruction-tuned)"}
NAMES = {
    "multitask": "multitask, fixed steps",
    "multitask_early": "multitask, early stopping",
}

_SETTINGS = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "lines.linewidth": 1.4,
    "lines.markersize": 5,
    "errorbar.capsize": 2,
    "figure.dpi": 110,
    "savefig.dpi": 110,
    # Fixed, or the ids inside an SVG would differ from run to run.
    "svg.hashsalt": "merging",
    "svg.fonttype": "path",
    # Journals refuse Type 3 fonts.
    "pdf.fonttype": 42,
}


class Look(NamedTuple):
    """Colour, marker and line style of one line."""

    color: str
    marker: str
    linestyle: str


class Figure(NamedTuple):
    """A drawn figure: name (also the files'), title, caption, and its files."""

    name: str
    title: str
    caption: str
    png: bytes
    svg: bytes
    pdf: bytes


def look(method: str, methods: Sequence[str]) -> Look:
    """The look of a method; those without one of their own get a spare.

    Two spares differ in marker or line, and in marker or colour: a fit's points have no
    line, a print in grey no colour. That holds for the first 24.
    """
    if method in _LOOKS:
        return Look(*_LOOKS[method])
    unknown = sorted(m for m in methods if m not in _LOOKS)
    again, at = divmod(unknown.index(method), len(_SPARE))
    _, marker = _SPARE[(at + again) % len(_SPARE)]
    return Look(_SPARE[at][0], marker, _SPARE_LINES[again % len(_SPARE_LINES)])


def ordered_look(index: int, count: int) -> Look:
    """The look of the index-th of `count` ordered lines: the later, the darker."""
    shade = round(index * (len(_ORDERED) - 1) / max(count - 1, 1))
    return Look(_ORDERED[shade], _SHAPES[index % len(_SHAPES)], "-")


def label(method: str) -> str:
    """A method's name in a legend."""
    return NAMES.get(method, method.replace("_", " "))


def human(count: int) -> str:
    """A parameter count in three digits or fewer: 15740 → 15.7K."""
    for unit, name in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= unit:
            scaled = count / unit
            text = f"{scaled:.0f}" if scaled >= 100 else f"{scaled:.3g}"
            return text + name
    return str(count)


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Draw with our settings whatever the user's matplotlibrc says, then restore."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def panels(
    rows: int,
    columns: int,
    *,
    width: float = 3.0,
    height: float = 2.5,
    share: bool | str = True,
):
    """A figure and its rows × columns axes; they share y-axes (or "row" by row)."""
    from matplotlib.figure import Figure as Canvas

    # The legend and the title need room of their own, however few the panels.
    size = max(columns * width, 6.4), rows * height + 1.1
    canvas = Canvas(figsize=size, layout="constrained")
    return canvas, canvas.subplots(rows, columns, sharey=share, squeeze=False)


def tidy(axes, ylabels: Sequence[str], x_axis: Callable[[object, bool], None]) -> None:
    """Drop the panels nothing was drawn in; label rows left, columns at the bottom.

    Args:
      axes: the panels, rows × columns.
      ylabels: one for each row.
      x_axis: called with a panel and whether it is its column's lowest.
    """
    drawn = [[ax.has_data() for ax in row] for row in axes]
    for i, row in enumerate(axes):
        for j, ax in enumerate(row):
            if not drawn[i][j]:
                ax.remove()
                continue
            x_axis(ax, not any(below[j] for below in drawn[i + 1 :]))
            if not any(drawn[i][:j]):
                ax.set_ylabel(ylabels[i])
                # Shared axes hide these everywhere but in the first column.
                ax.tick_params(labelleft=True)


def line(
    ax,
    x: Sequence[float],
    scores: Sequence[Spread],
    style: Look,
    *,
    connect: bool = True,
) -> None:
    """Draw means joined by a line, with bars from the lowest to the highest value."""
    points = [(a, s) for a, s in zip(x, scores, strict=True) if s.mean is not None]
    if not points:
        return
    below = [s.mean - s.low for _, s in points]
    above = [s.high - s.mean for _, s in points]
    ax.errorbar(
        [a for a, _ in points],
        [s.mean for _, s in points],
        # No bar at all for a single value: a zero-length one would claim certainty.
        yerr=[below, above] if any(s.count > 1 for _, s in points) else None,
        color=style.color,
        marker=style.marker,
        linestyle=style.linestyle if connect else "none",
        elinewidth=0.8,
    )


def reference(
    ax, x: Sequence[float], y: Sequence[float | None], color="#999999"
) -> None:
    """Draw what a score is to be read against (a floor) as a thin grey dashed line."""
    points = [(a, b) for a, b in zip(x, y, strict=True) if b is not None]
    if points:
        xs, ys = zip(*points, strict=True)
        single = len(points) == 1
        marker = {"marker": "_", "markersize": 18} if single else {}
        ax.plot(xs, ys, color=color, linestyle=(0, (4, 2)), linewidth=1.1, **marker)


def size_axis(ax, sizes: Mapping[str, int], bottom: bool) -> None:
    """A logarithmic x-axis with one named tick for each size."""
    ax.set_xscale("log")
    counts = list(sizes.values())
    names = [f"{size}\n{human(count)}" for size, count in sizes.items()]
    ax.set_xticks(counts, names if bottom else [""] * len(names))
    ax.minorticks_off()
    ax.set_xlim(counts[0] / 1.6, counts[-1] * 1.6)
    if bottom:
        ax.set_xlabel("size (parameters, log scale)")


def count_axis(ax, counts: Sequence[int], bottom: bool) -> None:
    """A linear x-axis with one tick for each K."""
    ax.set_xticks(counts, [str(K) for K in counts] if bottom else [""] * len(counts))
    margin = max(0.06 * (counts[-1] - counts[0]), 0.4)
    ax.set_xlim(counts[0] - margin, counts[-1] + margin)
    if bottom:
        ax.set_xlabel("experts merged, K")


def dodge(index: int, count: int) -> float:
    """-1…1: where the index-th of `count` lines stands, so that bars do not overlap."""
    return (2 * index - count + 1) / max(count - 1, 1)


def handle(name: str, style: Look):
    """A legend entry."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=name, **style._asdict())


def reference_handle(name: str):
    """The legend entry of a `reference` line."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=name, color="#999999", linestyle=(0, (4, 2)))


def finish(canvas, name: str, title: str, caption: str, handles: Sequence) -> Figure:
    """Add title and legend, and render to PNG, SVG and PDF without any date."""
    canvas.suptitle(title, fontsize=11)
    canvas.legend(
        handles=list(handles),
        loc="outside lower center",
        ncols=min(len(handles), max(2, int(canvas.get_figwidth() / 1.7))),
        frameon=False,
    )
    # Laid out once, not once per format: it is half the time of plotting.
    canvas.get_layout_engine().execute(canvas)
    canvas.set_layout_engine("none")
    png, svg, pdf = io.BytesIO(), io.BytesIO(), io.BytesIO()
    canvas.savefig(png, format="png", metadata={"Software": None})
    canvas.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    canvas.savefig(pdf, format="pdf", metadata={"CreationDate": None})
    files = png.getvalue(), svg.getvalue(), pdf.getvalue()
    return Figure(name, title, caption, *files)
