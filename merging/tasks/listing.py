"""A suite's datasets and examples as text, for a person."""

from collections.abc import Sequence

from merging.runtime import text
from merging.tasks.suites import Suite


def listed(suite: Suite) -> str:
    """Return a line per dataset, in columns."""
    rows = [("dataset", "split", "category", "metric", "chance")]
    rows += [(d.name, d.split, d.category, d.metric, d.chance) for d in suite.datasets]
    return text.table(rows)


def shown(
    title: str, inputs: str, choices: Sequence[str], label: int, targets: str
) -> str:
    """Return an example with its answers: choices, of which one is right, or a text."""
    lines = [f"--- {title} ---", inputs]
    for number, choice in enumerate(choices):
        lines.append(f"[{'right' if number == label else 'choice'}] {choice}")
    return "\n".join(lines if choices else [*lines, f"[target] {targets}"])
