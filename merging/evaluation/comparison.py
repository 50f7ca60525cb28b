"""Two models on the same examples: what they differ by, and how sure that is."""

from merging.evaluation import bootstrap, store, tables
from merging.evaluation.tables import Value
from merging.runtime.errors import UserError
from merging.runtime.storage import Folder
from merging.runtime.text import Table


def compare(one: Folder, other: Folder) -> str:
    """Return `compared` as text, under a line that names the two workdirs.

    Raises:
      UserError: as `compared`.
    """
    table = compared(one, other)
    return f"{table.title}\n{table.text()}"


def compared(one: Folder, other: Folder) -> Table:
    """Return a table of two workdirs: values, differences, their paired intervals.

    Datasets of which both answered the same examples come first, then the means of
    each split.

    Raises:
      UserError: a workdir without a finished evaluation, or no dataset of which both
        answered the same examples.
    """
    ours, theirs = ([r.score for r in store.present(path)] for path in (one, other))
    others = {score.dataset: score for score in theirs}
    lines, unlike, splits = [], [], {}
    for score in ours:
        name, metric = score.dataset, score.metric
        if name not in others:
            continue
        if score.asked != others[name].asked:
            unlike.append(name)
            continue
        pair = [tables.value(s, metric) for s in (score, others[name])]
        lines.append(_line(name, metric, *pair))
        splits.setdefault(score.split, []).append(pair)
    if not lines:
        reason = f"other examples of {', '.join(unlike)}" if unlike else "no dataset"
        raise UserError(f"{one} and {other} cannot be compared: they share {reason}.")
    for split, pairs in splits.items():
        if len(pairs) > 1:
            means = map(tables.mean, zip(*pairs, strict=True))
            lines.append(_line(f"mean of {split}", "", *means))
    percent = f"{100 * bootstrap.DEFAULT.level:g} %"
    columns = ("dataset", "metric", "A", "B", "B - A", f"{percent} from", "to", "sure")
    title = f"A: {one}, B: {other}"
    if unlike:
        title += f"; other examples, left out: {', '.join(unlike)}"
    return Table("comparison", title, columns, tuple(lines))


def _line(name: str, metric: str, a: Value, b: Value) -> tuple:
    # Both were drawn from the same examples, resample by resample.
    low, high, _ = bootstrap.interval(b.resampled - a.resampled)
    sure = "yes" if low > 0 or high < 0 else "no"
    return (name, metric, a.value, b.value, b.value - a.value, low, high, sure)
