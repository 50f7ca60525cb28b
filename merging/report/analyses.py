"""An analysis' rows as sections of the page: geometry, saturation, laws.

The rows are those of `analysis.json`; nothing here computes one. A figure whose rows
are not there is left out, and a section without figures too.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from merging.report.document import Panel, Section, plot

# How many looks `looks.ordered` has under "ordinal".
ORDINALS = 8
# Pairs of experts that one heat map shows.
_MOST_PAIRS = 60
_RANKS = ("effective_rank", "stable_rank", "participation_ratio")
_WIDTHS = ("width", "marginal_width", "ellipsoid_width")


class Found(Protocol):
    """A number that an analysis found."""

    quantity: str
    value: float | None
    by: str
    layer: int | None
    kind: str
    of: Sequence[str]
    at: float | None
    low: float | None
    high: float | None
    group: str


def sections(analyses: Iterable[tuple[str, Sequence[Found]]]) -> list[Section]:
    """Return the sections of analyses.

    Args:
      analyses: (what was done, its rows): "geometry", "saturation" or "law"; what is
        not known here is left out.
    """
    made: list[Section] = []
    for number, (name, rows) in enumerate(analyses):
        if name in _KINDS:
            title, draw = _KINDS[name]
            anchor = f"{name}_{number}" if any(s.name == name for s in made) else name
            panels = [p._replace(name=f"{anchor}_{p.name}") for p in draw(rows)]
            made.append(Section(anchor, title, panels))
    return [section for section in made if section.panels]


def _geometry(rows: Sequence[Found]) -> list[Panel]:
    panels = []
    for quantity, title, middle, caption in (
        (
            "cosine",
            "Cosines of task vectors",
            0.0,
            "Between experts' differences from the base: 0 is no relation, 1 the same "
            "direction.",
        ),
        (
            "sign_disagreement",
            "Sign disagreement",
            None,
            "Of the weights that both experts move, the share that they move in "
            "opposite directions; 0.5 is chance.",
        ),
    ):
        panels += _by_layer_and_pair(rows, quantity, title, middle, caption)
    lines = {
        name: [r for r in rows if r.quantity == name and r.by == "layer"]
        for name in _RANKS
    }
    panels += _lines(
        "ranks",
        "Ranks of the stack of task vectors, by layer",
        "How many directions the experts' changes fill; at most one for each expert.",
        lines,
        lambda row: row.layer,
        ("layer", "directions"),
    )
    return panels


def _by_layer_and_pair(
    rows: Sequence[Found], quantity: str, title: str, middle: float | None, caption: str
) -> list[Panel]:
    """A heat map: pairs of experts down; the whole model, then layers, across."""
    found = [r for r in rows if r.quantity == quantity and r.by in ("model", "layer")]
    pairs = list(dict.fromkeys(tuple(row.of) for row in found))
    if not pairs:
        return []
    layers = sorted({row.layer for row in found if row.layer is not None})
    whole = any(row.by == "model" for row in found)
    across = [*([None] if whole else []), *layers]
    at = {(tuple(row.of), row.layer): row.value for row in found}
    shown = pairs[:_MOST_PAIRS]
    names = [" · ".join(pair) for pair in shown]
    ends = ["model" if layer is None else str(layer) for layer in across]
    grid = [[at.get((pair, layer)) for layer in across] for pair in shown]
    trace = {
        "type": "heatmap",
        "x": ends,
        "y": names,
        "z": grid,
        "middle": middle,
        "hoverinfo": "text",
        "hovertext": [
            [
                f"{name}\n{'layer ' if end != 'model' else ''}{end}: {_shown(value)}"
                for end, value in zip(ends, line, strict=True)
            ]
            for name, line in zip(names, grid, strict=True)
        ],
        "xgap": 1,
        "ygap": 1,
        "colorbar": {"thickness": 10, "outlinewidth": 0},
        "text": [["" if v is None else f"{v:.2f}" for v in r] for r in grid],
        "texttemplate": "%{text}",
    }
    layout = {
        "height": 24 * len(shown) + 90,
        "margin": {"l": 10},
        "xaxis": {"type": "category", "title": "layer"},
        "yaxis": {"type": "category", "autorange": "reversed"},
    }
    if len(pairs) > len(shown):
        caption += f" The first {len(shown)} of {len(pairs)} pairs."
    return [Panel(quantity, title, caption, plot([trace], layout))]


def _saturation(rows: Sequence[Found]) -> list[Panel]:
    def by_count(names: Sequence[str]) -> dict[str, list[Found]]:
        return {
            name: [r for r in rows if r.quantity == name and r.at is not None]
            for name in names
        }

    return [
        *_lines(
            "widths",
            "Gaussian width against K",
            "Of the convex hull of 0 and the first K task vectors; bars are intervals "
            "of the Monte Carlo estimate.",
            by_count(_WIDTHS),
            lambda row: row.at,
            ("K, experts", "width"),
        ),
        *_lines(
            "rank",
            "Effective rank against K",
            "How many directions K task vectors fill.",
            by_count(("effective_rank",)),
            lambda row: row.at,
            ("K, experts", "directions"),
        ),
    ]


def _law(rows: Sequence[Found]) -> list[Panel]:
    groups = dict.fromkeys(row.of[0] for row in rows if row.quantity == "fitted")
    panels = []
    for number, group in enumerate(groups):
        sizes = list(
            dict.fromkeys(
                row.of[1]
                for row in rows
                if row.quantity == "fitted" and row.of[0] == group
            )
        )
        lines = {}
        for quantity, word in (("observed", "observed"), ("fitted", "law")):
            for size in sizes:
                wanted = [group, size]
                lines[f"{word}, N = {size}"] = [
                    r for r in rows if r.quantity == quantity and list(r.of) == wanted
                ]
        axes = ("k, experts merged", "value")
        caption = "Bars on the law are its bootstrap interval."
        panels += _lines(
            f"fit_{number}",
            f"The fitted law: {group}",
            caption,
            lines,
            lambda row: row.at,
            axes,
            mode=lambda label: "lines" if label.startswith("law") else "markers",
            group=lambda label: label.partition(", ")[2],
        )
        tests = dict.fromkeys(
            row.of[1]
            for row in rows
            if row.quantity == "held_out_predicted" and row.of[0] == group
        )
        for test_number, test in enumerate(tests):
            lines = {
                word: [
                    r
                    for r in rows
                    if r.quantity == quantity and list(r.of[:2]) == [group, test]
                ]
                for quantity, word in (
                    ("held_out_observed", "observed"),
                    ("held_out_predicted", "predicted"),
                )
            }
            panels += _lines(
                f"held_out_{number}_{test_number}",
                f"Held-out points: {group}, {test}",
                "The law saw none of these points; bars are its intervals for them.",
                lines,
                lambda row: row.at,
                axes,
                mode=lambda label: "markers",
            )
    return panels


_KINDS: Mapping[str, tuple[str, Callable[[Sequence[Found]], list[Panel]]]] = {
    "geometry": ("Geometry of the task vectors", _geometry),
    "saturation": ("Why gains saturate", _saturation),
    "law": ("The merging law", _law),
}
SWEEP = "sweep"  # an analysis of a sweep's models, drawn beside its rows
DRAWN = (*_KINDS, SWEEP)


def _lines(
    name: str,
    title: str,
    caption: str,
    lines: Mapping[str, Sequence[Found]],
    place: Callable[[Found], float | None],
    axes: tuple[str, str],
    mode: Callable[[str], str] = lambda label: "lines+markers",
    group: Callable[[str], str] = lambda label: label,
) -> list[Panel]:
    """A figure of named lines; none where no row has a value.

    Args:
      name, title, caption: the panel's.
      lines: label → rows.
      place: a row's x.
      axes: their titles.
      mode: a label's, as Plotly has it.
      group: labels of one group look alike.
    """
    known = {
        label: sorted((r for r in rows if r.value is not None), key=place)
        for label, rows in lines.items()
    }
    known = {label: rows for label, rows in known.items() if rows}
    traces = []
    groups = list(dict.fromkeys(map(group, known)))
    for label, rows in known.items():
        number = groups.index(group(label))
        ordinal = round(number * (ORDINALS - 1) / max(len(groups) - 1, 1))
        trace: dict[str, Any] = {
            "type": "scatter",
            "mode": mode(label),
            "name": label.replace("_", " "),
            "look": ["ordinal", str(ordinal)],
            "x": [place(row) for row in rows],
            "y": [row.value for row in rows],
            "hoverinfo": "text",
            "hovertext": [
                f"{label.replace('_', ' ')}\n{axes[0]} {place(row):g}: "
                f"{_shown(row.value)}{_range(row)}"
                for row in rows
            ],
        }
        if all(None not in (row.low, row.high) for row in rows):
            trace["error_y"] = {
                "type": "data",
                "symmetric": False,
                "array": [row.high - row.value for row in rows],
                "arrayminus": [row.value - row.low for row in rows],
            }
        traces.append(trace)
    places = sorted({x for trace in traces for x in trace["x"]})
    layout = {"xaxis": {"title": axes[0]}, "yaxis": {"title": axes[1]}}
    if len(places) <= 12:
        layout["xaxis"] |= {"tickvals": places, "ticktext": [f"{x:g}" for x in places]}
    return [Panel(name, title, caption, plot(traces, layout))] if traces else []


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _range(row: Found) -> str:
    if None in (row.low, row.high):
        return ""
    return f" ({_shown(row.low)} to {_shown(row.high)})"
