"""What a sweep found, in three sentences with numbers."""

import statistics

from merging.report.summaries import Grid, Spread, across_methods, measure


def answer(grid: Grid) -> list[str]:
    """Sentences on what adding experts costs, on size, and on held-out tasks.

    Every number is a mean over merge methods, with the lowest and the highest run (a
    base and a seed) in brackets, at the smallest and the largest K.
    """
    if not grid.counts:
        return ["No merge is finished yet: there are baselines only."]
    return [
        sentence
        for sentence in (_experts(grid), _size(grid), _held_out(grid))
        if sentence
    ]


_MEASURES = (
    ("normalised_gain", "of the gap between its base and its experts"),
    ("held_in", "of its experts' scores"),
)


def _measured(grid: Grid) -> tuple[str, str]:
    """The measure that the answer is told in: the gain, where it exists."""
    size = list(grid.sizes)[-1]
    for name, words in _MEASURES:
        if all(_over(grid, size, K, name).count for K in _ends(grid)):
            return name, words
    return _MEASURES[-1]


def _experts(grid: Grid) -> str:
    name, words = _measured(grid)
    size = list(grid.sizes)[-1]
    verb = "recovers" if name == "normalised_gain" else "keeps"
    few, *many = _ends(grid)
    first = _over(grid, size, few, name)
    if not first.count:
        return ""
    text = (
        f"On its experts' own tasks a merge of {_named(few)} at {size} {verb} "
        f"{_shown(first)} {words}"
    )
    last = _over(grid, size, many[0], name) if many else None
    return f"{text}; one of {many[0]} {verb} {_shown(last)}." if last else f"{text}."


def _size(grid: Grid) -> str:
    name, _ = _measured(grid)
    small, large = list(grid.sizes)[0], list(grid.sizes)[-1]
    if small == large:
        return _methods(grid) or _categories(grid)
    parts = []
    for K in _ends(grid):
        pair = [_over(grid, size, K, name).mean for size in (small, large)]
        if None not in pair:
            parts.append(f"from {pair[0]:.2f} to {pair[1]:.2f} with {_named(K)}")
    if not parts:
        return ""
    return f"Going from {small} to {large}, that share goes {' and '.join(parts)}."


def _methods(grid: Grid) -> str:
    """Instead of sizes, where there is one: the best method and the weakest."""
    name, _ = _measured(grid)
    size, K = list(grid.sizes)[-1], grid.counts[-1]
    means = {}
    for method in grid.methods:
        models = [m for base in grid.bases for m in grid.models(size, base, method, K)]
        if (found := measure(models, name)).count:
            means[method] = found.mean
    if len(means) < 2:
        return ""
    best, worst = max(means, key=means.get), min(means, key=means.get)
    return (
        f"With K = {K} the best method is {best} ({means[best]:.2f}), the weakest "
        f"{worst} ({means[worst]:.2f})."
    )


def _categories(grid: Grid) -> str:
    """With one method, too: the experts' tasks that it keeps best and worst."""
    K = grid.counts[-1]
    values: dict[str, list[float]] = {}
    for row in grid.rows:
        if row.method in grid.methods and row.K == K and row.split == "held_in":
            if row.merged and row.value_of_expert:
                share = row.value / row.value_of_expert
                values.setdefault(row.category, []).append(share)
    means = {category: statistics.fmean(of) for category, of in values.items()}
    if len(means) < 2:
        return ""
    best, worst = max(means, key=means.get), min(means, key=means.get)
    return (
        f"With K = {K} it keeps {best.replace('_', ' ')} best ({means[best]:.2f} of "
        f"its expert's score), {worst.replace('_', ' ')} worst ({means[worst]:.2f})."
    )


def _held_out(grid: Grid) -> str:
    size, K = list(grid.sizes)[-1], grid.counts[-1]
    found = _over(grid, size, K, "held_out")
    if not found.count:
        return ""
    if found.low > 1:
        reading = "better than its unmerged base"
    elif found.high < 1:
        reading = "worse than its unmerged base"
    else:
        reading = "no clear difference from not merging"
    if found.count < 2:
        reading += ", as far as one run can tell"
    elif not reading.startswith("no"):
        reading += " in every run"
    return (
        f"On held-out tasks, which no expert was trained on, a merge of "
        f"{_named(K)} at {size} scores {_shown(found)} times its base: "
        f"{reading}."
    )


def _over(grid: Grid, size: str, K: int, name: str) -> Spread:
    return across_methods(grid, size, grid.bases, K, name)


def _ends(grid: Grid) -> list[int]:
    return sorted({grid.counts[0], grid.counts[-1]})


def _named(K: int) -> str:
    return "one expert" if K == 1 else f"{K} experts"


def _shown(found: Spread | None) -> str:
    if found is None or found.mean is None:
        return "an unknown share"
    if found.count < 2:
        return f"{found.mean:.2f} (one run)"
    return f"{found.mean:.2f} ({found.low:.2f} to {found.high:.2f})"
