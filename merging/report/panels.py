"""The figures of a sweep's page: what each draws, and which choices it follows.

To add one, write a `Panel` here and name it in `sections`; it is left out where its
table is empty. Figures that do not come from result rows reach the page as whole
sections (`page.page`, `more`).
"""

from collections.abc import Mapping

from merging.report.document import Panel, Section
from merging.report.saturation import SATURATED
from merging.report.summaries import SMALLEST_GAP

METRICS = {
    "ratio": "ratio",
    "gain": "normalised gain",
    "raw": "raw score",
}
_RANGE = (
    "Points are means, bars run from the lowest to the highest value over seeds and "
    "expert subsets; no bar: one value. "
)


def sweep() -> list[Panel]:
    """Every figure of a sweep's page."""
    both = ["size", "base", "method", "K", "category", "metric"]
    points_ = {"kind": "lines", "table": "points"}
    held_out = {
        "fixed": {"split": "held_out"},
        "instead": {"metric": {"gain": "ratio"}},
        "y": "held-out",
        "why": "No expert of a held-out task exists, so there is no normalised gain.",
    }
    held_in = {"fixed": {"split": "held_in"}, "y": "held-in"}
    facets = {**points_, "controls": ["base", "category", "metric"], "x": "K"}
    facets |= {"line": "method", "facet": "size"}
    by_size = {"kind": "lines", "controls": ["base"], "x": "K", "facet": "size"}
    gains = {**by_size, "controls": ["base", "metric"], "line": "method"}
    gains |= {"instead": {"metric": {"ratio": "raw"}}, "from_base": True}
    return [
        Panel(
            "held_in",
            "Held-in: the experts' own tasks",
            _RANGE + "Thin dashed lines: the floor, the unmerged base's score.",
            {**points_, **held_in, "controls": both, "x": "@across", "line": "@lines"},
        ),
        Panel(
            "held_out",
            "Held-out: tasks of no expert",
            _RANGE + "Thin dashed line: the unmerged base.",
            {**points_, **held_out, "controls": both, "x": "@across", "line": "@lines"},
        ),
        Panel("methods_in", "Held-in, by method", _RANGE, {**facets, **held_in}),
        Panel("methods_out", "Held-out, by method", _RANGE, {**facets, **held_out}),
        Panel(
            "converging",
            "Do the methods converge? Best minus worst held-in ratio",
            "Within each seed; bars run from the lowest to the highest seed.",
            {
                **{"kind": "lines", "table": "converging", "controls": ["base"]},
                **{"x": "size", "line": "K", "y": "best minus worst", "zero": True},
            },
        ),
        Panel(
            "datasets",
            "Method by dataset",
            "Held-in datasets count where their own expert was merged; base, expert "
            "and multitask models stand beside the merges, whatever K is.",
            {
                **{"kind": "heat", "table": "datasets", "x": "method", "y": "dataset"},
                "controls": ["size", "base", "K", "category", "metric"],
            },
        ),
        Panel(
            "gains",
            "Gain over the base, all held-in datasets",
            f"Lines are fits of a (1 − exp(−K/c)); a ring marks {SATURATED:.0%} of a, "
            "where the fit is good and reaches it within the range. Where no line is "
            "drawn, nothing could be fitted (table F6_fit says why).",
            {
                **{**gains, "table": "gains", "y": "gain over the base"},
                "titles": {"raw": "gain, raw score", "gain": "gain, share of gap"},
            },
        ),
        Panel(
            "added",
            "Gain per added expert",
            "Since the point before, drawn half-way between them; lines are the fits' "
            "slopes.",
            {
                **{**gains, "table": "added", "y": "gain per expert"},
                "titles": {
                    "raw": "per expert, raw",
                    "gain": "per expert, share of gap",
                },
            },
        ),
        Panel(
            "scales",
            "λ that validation chose",
            "Means and ranges over seeds and subsets; a λ at an end of its grid might "
            "have gone further (the hover says how often).",
            {**by_size, "table": "scales", "line": "method", "y": "λ", "zero": True},
        ),
        Panel(
            "scale_sweeps",
            "Validation score against λ",
            "The mean ratio to the experts' validation scores, at the density that was "
            "chosen: λ is chosen at the top of each curve.",
            {
                **{"kind": "lines", "table": "scale_sweeps", "x": "scale"},
                **{"controls": ["base", "K"], "line": "method", "facet": "size"},
                "y": "validation ratio",
            },
        ),
    ]


def sections(panels: Mapping[str, Panel]) -> list[Section]:
    """The page's sections of figures, of those panels that have rows."""

    def some(*names: str) -> list[Panel]:
        return [panels[name] for name in names if name in panels]

    return [
        Section(
            "methods",
            "Methods side by side",
            some("methods_in", "methods_out", "converging"),
        ),
        Section("by_dataset", "Datasets", some("datasets")),
        Section("experts", "What each expert adds", some("gains", "added")),
        Section("lambda", "Choosing λ", some("scales", "scale_sweeps")),
    ]


TERMS = (
    (
        "Held-in ratio",
        "mean over the merged experts' tasks of the merged model's score divided by "
        "that task's own expert's. 1 means merging lost nothing.",
    ),
    (
        "Floor",
        "the same ratio for the unmerged base. A held-in ratio is only interesting as "
        "far as it is above its floor; a high floor alone makes a base look mergeable.",
    ),
    (
        "Normalised gain",
        "(merged − base) / (experts − base) on mean raw scores: 0 is no better than "
        "the base, 1 as good as the experts. Left out where the experts' mean is less "
        f"than {SMALLEST_GAP} above the base.",
    ),
    (
        "Held-out ratio",
        "mean over held-out tasks of the merged model's score divided by the base's. "
        "Above 1, merging made the model better at what no expert learned.",
    ),
    (
        "Mean of methods",
        "the methods' mean within each run (a seed); its bar runs over the runs.",
    ),
    (
        "λ",
        "the merge's scale, chosen on validation data per merge from a grid; “at edge” "
        "says how often an end of the grid won.",
    ),
    (
        "Spread",
        "sd is the sample standard deviation over seeds and expert subsets, low and "
        "high its range. Ratios over a zero or unknown score are left out and counted "
        "(“excluded”).",
    ),
    (
        "Saturation",
        f"the number of experts at which the fitted gain curve reaches {SATURATED:.0%} "
        "of its asymptote.",
    ),
    (
        "MS, WF",
        "the papers whose claims are judged: “What Matters for Model Merging at "
        "Scale?” (arXiv 2410.03617) and “Why Do More Experts Fail?” (arXiv "
        "2505.21226).",
    ),
)
