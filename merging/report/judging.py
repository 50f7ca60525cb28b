"""The rule that turns differences into "holds", "does not hold" or "mixed"."""

import math
import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from merging.runtime.text import Table

HOLDS, FAILS, MIXED, UNTESTED = "holds", "does not hold", "mixed", "not tested"

MOST, HALF, ERRORS = 0.8, 0.5, 2

RULE = f"""\
Each claim becomes a set of comparisons (for example: IT minus PT at one size, \
method and K). A comparison agrees when its mean over seeds is above zero. The mean \
difference is the mean over comparisons; its standard error comes from the seeds \
(comparisons of one seed share experts and are not independent). On one measure a \
claim HOLDS when at least {MOST:.0%} of the comparisons agree and the mean \
difference is above zero by more than {ERRORS} standard errors; it DOES NOT HOLD when \
at most {HALF:.0%} agree and the mean difference is not above zero by more than \
{ERRORS} standard errors; anything else is MIXED. A claim judged on several measures \
needs the same outcome on each, otherwise it is MIXED; while one of them lacks its \
rows and the others agree, it is NOT TESTED. With one seed there is no \
standard error: only the count and the sign of the mean decide, and the spread is \
said to be unknown. Standard errors from two or three seeds are themselves rough. They \
cover what the seeds vary (experts and their subsets); a base trained once brings its \
luck to every seed."""

Differences = Mapping[tuple, Mapping[int, float]]


class ClaimTest(NamedTuple):
    """The comparisons of one claim on one measure.

    Attributes:
      measure: what was compared, in words.
      decides: counts towards the verdict (otherwise shown beside it).
      agree, against, level: comparisons with a positive, negative, zero mean.
      mean, standard_error: of the difference; no error with one seed.
      low, high: the smallest and largest comparison.
    """

    measure: str
    outcome: str
    decides: bool = True
    agree: int = 0
    against: int = 0
    level: int = 0
    mean: float | None = None
    standard_error: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: int = 0

    def sentence(self) -> str:
        """The tests in one line of text."""
        if self.outcome == UNTESTED:
            return f"{self.measure}: not tested"
        cells = self.agree + self.against + self.level
        error = (
            f"± {self.standard_error:.3f} (standard error over {self.seeds} seeds)"
            if self.standard_error is not None
            else "(no pair of seeds: spread unknown)"
        )
        return (
            f"{self.measure}: {self.agree} of {cells} comparisons agree, mean "
            f"difference {self.mean:+.3f} {error}, "
            f"from {self.low:+.3f} to {self.high:+.3f}"
        )


class Verdict(NamedTuple):
    """One claim, its outcome, the tests and what to mind when claim it."""

    key: str
    source: str
    claim: str
    outcome: str
    tests: tuple[ClaimTest, ...]
    notes: tuple[str, ...]


def judge(name: str, differences: Differences, decides: bool = True) -> ClaimTest:
    """Apply the rule to one measure's differences (comparison → seed → value)."""
    differences = {cell: seeds for cell, seeds in differences.items() if seeds}
    if not differences:
        return ClaimTest(name, UNTESTED, decides)
    cells = {cell: statistics.fmean(d.values()) for cell, d in differences.items()}
    agree = sum(value > 1e-12 for value in cells.values())
    against = sum(value < -1e-12 for value in cells.values())
    mean = statistics.fmean(cells.values())
    error, seeds = _standard_error(differences, cells)
    clear = mean > ERRORS * (error or 0.0)
    if agree >= MOST * len(cells) and clear:
        outcome = HOLDS
    elif agree <= HALF * len(cells) and not clear:
        outcome = FAILS
    else:
        outcome = MIXED
    return ClaimTest(
        name,
        outcome,
        decides,
        agree,
        against,
        len(cells) - agree - against,
        mean,
        error,
        min(cells.values()),
        max(cells.values()),
        seeds,
    )


def _standard_error(
    differences: Differences, cells: Mapping[tuple, float]
) -> tuple[float | None, int]:
    """Standard error over seeds of the mean difference, and the number of seeds."""
    deviations: dict[int, list[float]] = {}
    for cell, seeds in differences.items():
        for seed, value in seeds.items():
            # Centred by comparison: in a partial run a seed that lacks the hard
            # comparisons must not look like a good seed. One seed alone in a
            # comparison says nothing about spread.
            if len(seeds) > 1:
                deviations.setdefault(seed, []).append(value - cells[cell])
    if len(deviations) < 2:
        return None, len({seed for seeds in differences.values() for seed in seeds})
    means = [statistics.fmean(values) for values in deviations.values()]
    return statistics.stdev(means) / math.sqrt(len(means)), len(means)


def conclude(
    key: str,
    source: str,
    claim: str,
    tests: Sequence[ClaimTest],
    notes: Iterable[str],
) -> Verdict:
    """Join the tests on one claim into its verdict."""
    notes = [note for note in notes if note]
    deciding = [e for e in tests if e.decides]
    tested = [e for e in deciding if e.outcome != UNTESTED]
    outcomes = {e.outcome for e in tested}
    if not tested:
        return Verdict(key, source, claim, UNTESTED, tuple(tests), tuple(notes))
    shown = "; ".join(f"{e.measure}: {e.outcome}" for e in deciding)
    outcome = tested[0].outcome
    if len(outcomes) > 1:
        outcome = MIXED
        notes.insert(0, f"The measures disagree: {shown}.")
    elif len(tested) < len(deciding):
        # What was not looked at may well say otherwise.
        outcome = UNTESTED
        notes.insert(0, f"Not tested in all its parts: {shown}.")
    if all(e.standard_error is None for e in tested):
        notes.append("One seed: the spread is unknown, this is one run's answer.")
    return Verdict(key, source, claim, outcome, tuple(tests), tuple(notes))


def minus(
    left: Mapping[int, float], right: Mapping[int, float], baseline: bool = False
) -> dict[int, float]:
    """left - right by seed; a baseline's missing seeds are filled with its mean."""
    if not left or not right:
        return {}
    mean = statistics.fmean(right.values())
    shared = left.keys() & right.keys()
    # Seeds that never meet cannot be paired; the difference of means still counts.
    seeds = left.keys() if baseline or not shared else shared
    return {seed: left[seed] - right.get(seed, mean) for seed in sorted(seeds)}


def verdict_table(found: Sequence[Verdict]) -> Table:
    """One line per verdict and measure."""
    rows = [
        (v.key, v.source, v.claim, v.outcome, *e._replace(decides=bool(e.decides)))
        for v in found
        for e in v.tests
    ]
    columns = ("key", "source", "claim", "verdict", "measure", "outcome", "decides")
    columns += ("agree", "against", "level", "mean difference", "standard error")
    columns += ("lowest", "highest", "seeds")
    return Table("verdicts", "Verdicts and their tests", columns, tuple(rows))


def verdict_text(found: Sequence[Verdict]) -> str:
    """The verdicts for a terminal: outcome and claim, then the tests."""
    lines = ["VERDICTS"]
    for verdict in found:
        source = f"({verdict.source})"
        lines.append(f"{verdict.outcome.upper():>13}  {verdict.claim} {source}")
        for tests in verdict.tests:
            if tests.decides:
                lines.append(f"{'':15}- {tests.sentence()} -> {tests.outcome}")
        lines += [f"{'':15}  {note}" for note in verdict.notes]
    wrapped = (
        textwrap.wrap(line, 100, subsequent_indent=" " * 17, break_on_hyphens=False)
        for line in lines
    )
    return "\n".join(part for parts in wrapped for part in parts)
