"""What a merge did to its base, as text and as a page."""

import math
from collections.abc import Sequence
from pathlib import Path

from merging.merge.changes import Inspection, LeafChange
from merging.report.document import (
    Document,
    Download,
    Panel,
    Section,
    plot,
    versions,
)
from merging.runtime.text import Table, parameters

# Leaves outside of layers that are drawn one by one.
_MOST_LEAVES = 60
_LOOKS = {
    "series": {
        "relative": {"light": "#0B5CAD", "dark": "#7DB8F2", "symbol": "circle"},
        "kept": {"light": "#B34400", "dark": "#FF9A66", "symbol": "square"},
    }
}
for _name, _dash in (("relative", "solid"), ("kept", "dash")):
    _LOOKS["series"][_name]["dash"] = _dash
_RELATIVE = "‖θ − θ₀‖ / ‖θ₀‖"
_KEPT = "share of elements changed"
_ROUNDING = (
    "An element counts as changed where its stored value differs: in 16 bits, rounding "
    "hides changes much smaller than the weight."
)


def text(found: Inspection) -> str:
    """What a person reads in a terminal."""
    lines = [f"{name}: {words}" for name, words in _made_of(found)]
    lines += found.notes
    if found.changes:
        lines += ["", *_answer(found), "", by_kind(found.changes).text()]
    return "\n".join(lines)


def page(found: Inspection) -> Document:
    """The page of a merge."""
    changes = found.changes
    tables = [by_kind(changes), every_leaf(changes)] if changes else []
    return Document(
        title=f"Merge: {Path(found.model).name or found.model}",
        facts=_facts(found),
        answer=_answer(found),
        lead=_by_layer(changes),
        notes=found.notes,
        sections=[
            Section("layers", "Layer by layer", _heat_maps(changes)),
            Section("leaves", "Outside of layers", _outside(changes)),
            Section("tables", "Tables", tables=tables, intro=_ROUNDING),
        ],
        terms=[
            (_RELATIVE, "how far a part moved, in units of the base's own norm."),
            (_KEPT, f"1 − the sparsity of θ − θ₀. {_ROUNDING}"),
        ],
        provenance=[*_made_of(found), ("Page drawn by", versions())],
        downloads=[
            Download("changes.csv", table.title, table.csv()) for table in tables[1:]
        ],
        looks=_LOOKS,
    )


def by_kind(changes: Sequence[LeafChange]) -> Table:
    """One line for each kind of leaf, over all layers: the most moved first."""
    groups: dict[str, list[LeafChange]] = {}
    for change in changes:
        groups.setdefault(change.kind, []).append(change)
    rows = [
        (kind, len(found), sum(c.elements for c in found), *_pooled(found))
        for kind, found in groups.items()
    ]
    rows.sort(key=lambda row: -(row[3] or 0.0))
    columns = ("leaf (* is the layer)", "leaves", "elements", "relative change")
    columns += ("share changed", "largest change")
    return Table("kinds", "Change by kind of leaf", columns, tuple(rows))


def every_leaf(changes: Sequence[LeafChange]) -> Table:
    """One line for each leaf."""
    columns = ("leaf", "layer", "shape", "dtype", "elements", "changed")
    columns += ("relative change", "norm of change", "norm of base", "largest change")
    rows = [
        (c.path, c.layer, "×".join(map(str, c.shape)), c.dtype, c.elements, c.changed)
        + (c.relative, c.norm, c.base_norm, c.largest)
        for c in changes
    ]
    return Table("leaves", "Change of every leaf", columns, tuple(rows))


def _pooled(found: Sequence[LeafChange]) -> tuple[float | None, float, float]:
    """Relative change, share changed and largest change of several leaves together."""
    base = math.hypot(*(c.base_norm for c in found))
    moved = math.hypot(*(c.norm for c in found))
    elements = sum(c.elements for c in found)
    return (
        moved / base if base else None,
        sum(c.changed for c in found) / elements if elements else 0.0,
        max(c.largest for c in found),
    )


def _answer(found: Inspection) -> list[str]:
    changes = found.changes
    if not changes:
        return ["The base is not at hand, so only the manifest is shown."]
    relative, kept, largest = _pooled(changes)
    elements = sum(c.elements for c in changes)
    moved = (
        "" if relative is None else f"the model moved by {relative:.2%} of its norm,"
    )
    said = [
        f"Of {parameters(elements)} elements {kept:.1%} differ from the base; {moved} "
        f"no element by more than {largest:.3g}."
    ]
    kinds = [row for row in by_kind(changes).rows if row[3] is not None]
    if len(kinds) > 1:
        said.append(
            f"Most moved is {kinds[0][0]} ({kinds[0][3]:.2%}), least {kinds[-1][0]} "
            f"({kinds[-1][3]:.2%})."
        )
    layers = _layers(changes)
    if len(layers) > 1:
        shares = {layer: _pooled(of)[1] for layer, of in layers.items()}
        low, high = min(shares, key=shares.get), max(shares, key=shares.get)
        said.append(
            f"By layer, the share of changed elements goes from {shares[low]:.1%} "
            f"(layer {low}) to {shares[high]:.1%} (layer {high})."
        )
    return said


def _layers(changes: Sequence[LeafChange]) -> dict[int, list[LeafChange]]:
    found: dict[int, list[LeafChange]] = {}
    for change in changes:
        if change.layer is not None:
            found.setdefault(change.layer, []).append(change)
    return dict(sorted(found.items()))


def _by_layer(changes: Sequence[LeafChange]) -> list[Panel]:
    pooled = {layer: _pooled(of) for layer, of in _layers(changes).items()}
    if len(pooled) < 2:
        return []
    return [
        Panel(
            f"by_layer_{name}",
            heading,
            "All leaves of a layer together.",
            plot(
                [
                    {
                        "type": "scatter",
                        "mode": "lines+markers",
                        "x": list(pooled),
                        "y": [one[at] for one in pooled.values()],
                        "look": ["series", name],
                        "hoverinfo": "text",
                        "hovertext": [
                            f"layer {layer}\n{title}: {_number(one[at])}"
                            for layer, one in pooled.items()
                        ],
                    }
                ],
                {
                    "xaxis": {"title": "layer", "dtick": max(1, len(pooled) // 12)},
                    "yaxis": {
                        "title": title,
                        "rangemode": "tozero",
                        "tickformat": ".0%",
                    },
                },
            ),
        )
        for name, heading, title, at in (
            ("relative", "How far each layer moved", _RELATIVE, 0),
            ("kept", "How much of each layer changed", _KEPT, 1),
        )
    ]


def _heat_maps(changes: Sequence[LeafChange]) -> list[Panel]:
    layers = list(_layers(changes))
    inside = [change for change in changes if change.layer is not None]
    kinds = list(dict.fromkeys(change.kind for change in inside))
    if not layers:
        return []
    ends = [kind.partition("*")[2].strip("._/") for kind in kinds]
    names = ends if len(set(ends)) == len(ends) else kinds
    at = {(change.kind, change.layer): change for change in inside}
    panels = []
    for name, title, value in (
        (
            "relative",
            f"How far each part moved: {_RELATIVE}, in %",
            lambda c: c.relative,
        ),
        ("kept", f"Where sparsity fell: {_KEPT}, in %", lambda c: c.kept),
    ):
        grid = [
            [
                value(at[kind, layer]) if (kind, layer) in at else None
                for layer in layers
            ]
            for kind in kinds
        ]
        largest = max((v for row in grid for v in row if v is not None), default=0.0)
        trace = {
            "type": "heatmap",
            "x": [str(layer) for layer in layers],
            "y": names,
            "z": grid,
            "zmax": 1.0 if name == "kept" else largest or 1.0,
            "hoverinfo": "text",
            "hovertext": [
                [_cell(at.get((kind, layer))) for layer in layers] for kind in kinds
            ],
            "xgap": 1,
            "ygap": 1,
            "colorbar": {"thickness": 10, "outlinewidth": 0, "tickformat": ".0%"},
            "text": [["" if v is None else _percent(v) for v in r] for r in grid],
            "texttemplate": "%{text}",
        }
        layout = {
            "height": 26 * len(kinds) + 90,
            "margin": {"l": 10},
            "xaxis": {"type": "category", "title": "layer"},
            "yaxis": {"type": "category", "autorange": "reversed"},
        }
        panels.append(
            Panel(
                f"heat_{name}",
                title,
                _ROUNDING if name == "kept" else "",
                plot([trace], layout),
            )
        )
    return panels


def _outside(changes: Sequence[LeafChange]) -> list[Panel]:
    outside = [c for c in changes if c.layer is None and c.relative is not None]
    outside = sorted(outside, key=lambda c: -c.relative)[:_MOST_LEAVES]
    if not outside:
        return []
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [c.relative for c in outside],
        "y": [c.path for c in outside],
        "look": ["series", "relative"],
        "hoverinfo": "text",
        "hovertext": [_cell(c) for c in outside],
    }
    layout = {
        "height": 24 * len(outside) + 90,
        "margin": {"l": 10},
        "xaxis": {"title": _RELATIVE, "rangemode": "tozero", "tickformat": ".1%"},
        "yaxis": {"type": "category", "autorange": "reversed"},
    }
    title = "How far each leaf outside of layers moved"
    return [Panel("outside", title, "", plot([trace], layout))]


def _cell(change: LeafChange | None) -> str:
    if change is None:
        return ""
    return (
        f"{change.path}\n{_RELATIVE}: {_number(change.relative)}\n{_KEPT}: "
        f"{change.kept:.1%} of {parameters(change.elements)}\nlargest change "
        f"{change.largest:.3g}"
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _percent(value: float) -> str:
    """A share for a small cell, without the sign."""
    return f"{100 * value:.0f}" if value >= 0.1 or value == 0 else f"{100 * value:.1f}"


def _facts(found: Inspection) -> list[tuple[str, str]]:
    facts = [("model", found.model)]
    if found.record:
        settings = found.record["settings"]
        facts.append(("method", settings["method"]))
        facts.append(("experts", ", ".join(settings["experts"]) or "–"))
    if found.base:
        facts.append(("held against", found.base))
    return facts


def _made_of(found: Inspection) -> list[tuple[str, str]]:
    """The manifest in words; nothing without one."""
    if not found.record:
        return [("Model", found.model), ("Manifest", "none")]
    settings = found.record["settings"]
    lines = [("Model", found.model), ("Method", settings["method"])]
    if settings["leaf_rules"]:
        lines.append(("Rules", "; ".join(settings["leaf_rules"])))
    lines += [
        (str(model.get("name", "an input")),
         f"{model['uri']} ({model.get('format', 'of unknown format')})")
        for model in found.record["inputs"]
    ]  # fmt: skip
    lines.append(("Seed, dtype", f"{settings['seed']}, {settings['dtype'] or 'kept'}"))
    made_by = found.record.get("versions")
    if isinstance(made_by, dict):
        told = ", ".join(f"{name} {version}" for name, version in made_by.items())
        lines.append(("Made by", told))
    again = f"merging merge --manifest {found.model}/manifest.json --output AGAIN"
    return [*lines, ("To get it again", again)]
