"""What an extraction says of itself: in a file, on a card, and on the screen."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from merging.merge.extraction.plan import Plan
from merging.runtime import text
from merging.runtime.errors import listed

NAME = "extraction.json"
_SHOWN = 5


def report(plan: Plan, fits: Sequence[tuple], left: Mapping[str, float]) -> dict:
    """Return what the report says beside the settings."""
    lost = sum((norm * error) ** 2 for _, norm, error, _ in fits)
    total = sum(norm**2 for _, norm, _, _ in fits)
    fields = ("rank", "norm", "error", "energy")
    return {
        "error": math.sqrt(lost / total) if total else 0.0,
        "matrices": {
            path: dict(zip(fields, numbers, strict=True))
            for path, numbers in zip(plan.matrices, fits, strict=True)
        },
        "stored_whole": list(plan.whole),
        "left_out": dict(left),
    }


def card(base: str, model: str, report: Mapping[str, Any]) -> str:
    """Return a model card in the Hugging Face hub's convention."""
    return "\n".join(
        [
            "---",
            "library_name: peft",
            "tags:",
            "- lora",
            f"base_model: {json.dumps(base)}",
            "---",
            "",
            "# Extracted adapter",
            "",
            f"What `{model}` adds to `{base}`, matrix by matrix, of a low rank: the "
            f"relative error over all of them is {report['error']:.3g}. `{NAME}` has "
            "the error of each.",
            "",
        ]
    )


def summary(report: Mapping[str, Any]) -> str:
    """Return the report in words: the matrices that are fitted worst."""
    matrices = report["matrices"]
    worst = sorted(matrices, key=lambda p: -matrices[p]["error"])[:_SHOWN]
    rows = [("matrix", "rank", "energy kept", "error")]
    for path in worst:
        of = matrices[path]
        rows.append((path, of["rank"], f"{of['energy']:.4f}", f"{of['error']:.3g}"))
    ranks = [of["rank"] for of in matrices.values()]
    lines = [
        text.table(rows, right=(1, 2, 3)),
        f"{len(matrices)} matrices of rank {min(ranks)} to {max(ranks)}: the error over"
        f" all is {report['error']:.3g} of the change; the worst are above ({NAME} has"
        " every one).",
    ]
    if left := report["left_out"]:
        lines.append(
            f"Left out, though the model differs there: {listed(sorted(left))}; name "
            "those to store as they are (whole)."
        )
    return "\n".join(lines)
