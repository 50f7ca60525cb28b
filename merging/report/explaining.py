"""What explains saturation, held against the rows: theory, barriers, coverage.

Of a sweep's rows and of the analyses of its models (`merging analyze --config
analyze/sweep`). WF is "Why Do More Experts Fail?" (arXiv 2505.21226), MS "What Matters
for Model Merging at Scale?" (arXiv 2410.03617), TA "Task Arithmetic in the Tangent
Space" (arXiv 2305.12827). As in `verdicts`, a claim becomes differences that are
positive where it is right.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence

from merging.report.analyses import Found
from merging.report.judging import (
    ClaimTest,
    Differences,
    Verdict,
    conclude,
    judge,
    minus,
)
from merging.report.summaries import Grid
from merging.report.sweep_analysis import (
    BETWEEN,
    NOTHING,
    THEORIES,
    Analysed,
    BySeed,
    curves,
    measured,
    of_seed,
    predicted,
    step,
)

# How near two shares of the way to the largest K must be to be called alike.
NEAR = 0.1
COVERED = {
    "touched": "share of weights moved",
    "coordinates": "weights that carry the change, of all",
    "matrix_effective_rank": "effective rank of the changed matrices",
    "matrix_stable_rank": "stable rank of them",
}


def verdicts(grid: Grid, found: Analysed) -> tuple[Verdict, ...]:
    """Judge every claim; always all of them, in one order."""
    return (
        _where_the_theory_says(grid, found),
        _bends_as(
            grid,
            *(found, "gains_bend_as_widths", "width", "the Gaussian width"),
        ),
        _bends_as(
            grid,
            *(found, "gains_bend_as_ranks", "effective_rank", "the effective rank"),
        ),
        _needs_a_smaller_share(found),
        _lower_barriers(found),
        _disentangle_with_size(found),
        _instruction_tuned_disentangle(found),
        _covers_more(grid, found),
        _optimised_multitask(found),
    )


def _where_the_theory_says(grid: Grid, found: Analysed) -> Verdict:
    runs = [(cell, seed, own) for cell, seed, own in _runs(grid, found) if len(own) > 1]
    rising = [run for run in runs if measured(run[2]) != 0]
    never = sum(measured(own) is None for _, _, own in rising)
    says = {(s, b): predicted(found, s, b) for s in found.sizes for b in found.bases}
    tests, notes = [], []
    for theory, words in THEORIES.items():
        differences: dict[tuple, dict[int, float]] = {}
        early, spans = 0, []
        for cell, seed, own in rising:
            if (ends := says[cell[:2]][theory].get(seed)) is None:
                continue
            first, last = (step(K, own) for K in ends)
            if last == 0:
                early += 1
                continue
            seen = step(measured(own) or float("inf"), own)
            spans.append((last - max(first, 1) + 1) / len(own))
            agrees = 1.0 if first <= seen <= last else -1.0
            differences.setdefault(cell, {})[seed] = agrees
        name = f"{words}: within its steps of K (+1) or outside (−1)"
        tests.append(judge(name, differences, theory == "parameters"))
        if theory == "parameters" and (spans or early):
            notes.append(_how_wide(early, spans))
    return conclude(
        "saturates_where_theory_says",
        "WF",
        f"Gains saturate (a further expert brings less than {100 * NOTHING:.0f} % of "
        "what each of the first brought) at the K where the theory says that experts "
        "no longer fit",
        tests,
        [
            *notes,
            f"Of {len(rising)} curves of one size, base, method and run, {never} do "
            "not saturate by the largest K."
            if rising
            else "",
            f"{len(runs) - len(rising)} curves gain nothing at their smallest K and "
            "are left out."
            if len(runs) > len(rising)
            else "",
        ],
    )


def _runs(
    grid: Grid, found: Analysed
) -> Iterator[tuple[tuple[str, str, str], int, dict[int, float]]]:
    """Yield (size, base, method), run, and its gains by K."""
    for size in found.sizes:
        for base in found.bases:
            for method in grid.methods:
                gain = curves(grid, size, base, method)
                for seed in sorted({seed for of in gain.values() for seed in of}):
                    yield (size, base, method), seed, of_seed(gain, seed)


def _how_wide(early: int, spans: Sequence[float]) -> str:
    """Say how many curves K* could be held against, and how much it leaves open.

    Args:
      early: curves whose K* is not above their smallest K.
      spans: of the others, the share of all outcomes that would have agreed.
    """
    words = f"K* cannot be tested on {early} of {early + len(spans)} curves: "
    words += "it is not above the smallest K, and saturation can be seen from the "
    words += "second on."
    if spans:
        words += " On the others its range, from the brackets of critical densities, "
        words += f"holds {statistics.fmean(spans):.0%} of what could be seen in the "
        words += f"mean ({min(spans):.0%} to {max(spans):.0%}): so many would agree "
        words += "by chance, were each step as likely."
    words += f" What decides: the {100 * NOTHING:.0f} %, and the densities tried."
    return words


def _bends_as(grid: Grid, found: Analysed, key: str, quantity: str, words: str):
    differences: dict[tuple, dict[int, float]] = {}
    signed = []
    for cell, seed, ours in _runs(grid, found):
        theirs = of_seed(found.along(*cell[:2], quantity), seed)
        both = sorted(ours.keys() & theirs.keys())
        if len(both) < 2 or ours[both[-1]] <= 0:
            continue
        middle, last = both[(len(both) - 1) // 2], both[-1]
        apart = ours[middle] / ours[last] - theirs[middle] / theirs[last]
        signed.append(apart)
        differences.setdefault(cell, {})[seed] = NEAR - abs(apart)
    middles = statistics.median(signed) if signed else 0.0
    return conclude(
        key,
        "WF",
        f"The gain's curve over K bends as {words} of the task vectors does",
        [
            judge(
                f"{NEAR} minus |share of the largest K's gain that is there at half of "
                "its experts, minus the same share of the other|",
                differences,
            )
        ],
        [
            f"The gain's share is larger than the other's by {middles:+.2f} in the "
            "median: above 0, it bends earlier."
            if signed
            else ""
        ],
    )


def _ends(found: Analysed) -> tuple[list[tuple[str, str]], list[tuple[str, str]], str]:
    """Return the (smallest, largest) size, the steps between sizes, and words."""
    sizes = list(found.sizes)
    if len(sizes) < 2:
        return [], [], "smallest minus largest"
    steps = list(zip(sizes, sizes[1:], strict=False))
    return [(sizes[0], sizes[-1])], steps, f"{sizes[0]} minus {sizes[-1]}"


def _falling(
    found: Analysed,
    name: str,
    of: Callable[[str, str], BySeed],
    decides: bool = True,
) -> list[ClaimTest]:
    """Judge whether a number is smaller at larger sizes."""

    def differences(pairs: Sequence[tuple[str, str]]) -> Differences:
        return {
            (small, large, base): minus(of(small, base), of(large, base))
            for small, large in pairs
            for base in found.bases
        }

    ends, steps, words = _ends(found)
    return [
        judge(f"{name}, {words}", differences(ends), decides),
        judge(f"{name}, each step up", differences(steps), decides=False),
    ]


def _needs_a_smaller_share(found: Analysed) -> Verdict:
    def density(size: str, base: str) -> BySeed:
        return found.values(size, base, "critical_density")

    def below(size: str, base: str) -> BySeed:
        ends = found.ends(size, base, "critical_density")
        return {seed: low for seed, (low, _) in ends.items()}

    lower = "mean of the next smaller densities tried, at which it does not"
    return conclude(
        "larger_need_a_smaller_share",
        "WF",
        "An expert of a larger model needs a smaller share of its weights to keep 99 % "
        "of its score",
        [
            *_falling(found, "mean critical density", density),
            *(t._replace(decides=False) for t in _falling(found, lower, below)),
        ],
        ["" if len(found.sizes) > 1 else "One size only."],
    )


def _lower_barriers(found: Analysed) -> Verdict:
    tests = []
    for between, words in BETWEEN.items():

        def height(size: str, base: str, between: str = between) -> BySeed:
            return found.barrier(size, base, between)

        name = f"barrier {words}, nats"
        tests += _falling(found, name, height, between == "experts")
    return conclude(
        "larger_have_lower_barriers",
        "MS",
        "Experts of larger models are better connected: the loss rises less on the "
        "straight line between them",
        tests,
        ["" if len(found.sizes) > 1 else "One size only."],
    )


def _disentangle_with_size(found: Analysed) -> Verdict:
    tests = []
    for scale in found.scales:

        def error(size: str, base: str, scale: float = scale) -> BySeed:
            return found.disentangled(size, base, scale)

        tests += _falling(found, f"disentanglement error at α = {scale:g}", error)
    return conclude(
        "larger_disentangle",
        "TA",
        "Tasks disentangle better in larger models: adding the other task vectors "
        "changes fewer of a task's answers",
        tests,
        ["" if len(found.sizes) > 1 else "One size only."],
    )


def _instruction_tuned_disentangle(found: Analysed) -> Verdict:
    def differences(of: Callable[[str, str], BySeed]) -> Differences:
        if set(found.bases) < {"pt", "it"}:
            return {}
        return {(size,): minus(of(size, "pt"), of(size, "it")) for size in found.sizes}

    tests = [
        judge(
            f"disentanglement error at α = {scale:g}, PT minus IT",
            differences(
                lambda size, base, scale=scale: found.disentangled(size, base, scale)
            ),
        )
        for scale in found.scales
    ]
    tests.append(
        judge(
            "barrier expert → expert, PT minus IT, nats",
            differences(lambda size, base: found.barrier(size, base, "experts")),
        )
    )
    return conclude(
        "it_disentangles",
        "MS",
        "Experts of instruction-tuned bases disentangle better, and lie nearer to each "
        "other in loss, than those of pretrained bases",
        tests,
        [],
    )


def _covers_more(grid: Grid, found: Analysed) -> Verdict:
    def differences(name: str, other: str) -> Differences:
        return {
            (size, base, K): minus(
                found.covered(size, base, "rht", K, name),
                found.covered(size, base, other, K, name),
            )
            for size in found.sizes
            for base in found.bases
            for K in grid.counts
        }

    tests = [
        judge(
            f"{words}, RHT minus {other.upper().replace('_', '-')}",
            differences(name, other),
            decides=name != "matrix_stable_rank",
        )
        for name, words in COVERED.items()
        for other in ("ties", "dare_ties")
    ]
    gain = {
        (size, base, K): minus(
            curves(grid, size, base, "rht").get(K, {}),
            curves(grid, size, base, "ties").get(K, {}),
        )
        for size in found.sizes
        for base in found.bases
        for K in grid.counts
    }
    tests.append(judge("gain, RHT minus TIES", gain, decides=False))
    return conclude(
        "rht_covers_more",
        "WF",
        "RHT's merges cover more of the space of weights than those of TIES and "
        "DARE-TIES at equal K",
        tests,
        [],
    )


def _optimised_multitask(found: Analysed) -> Verdict:
    def value(quantity: str, multitask: bool) -> Callable[[str, str], BySeed]:
        def wanted(row: Found) -> bool:
            return (tuple(row.of) == ("multitask",)) == multitask

        return lambda size, base: found.values(size, base, quantity, wanted)

    def differences(left, right) -> Differences:
        return {
            (size, base): minus(left(size, base), right(size, base))
            for size in found.sizes
            for base in found.bases
        }

    best = value("wise_ft_value", True)
    return conclude(
        "optimised_multitask",
        "MS",
        "A multitask model, interpolated toward its base by validation (WiSE-FT), is "
        "better held-in than the merge of all experts, interpolated likewise",
        [
            judge(
                "mean value on held-in datasets, multitask minus merge",
                differences(best, value("wise_ft_value", False)),
            ),
            judge(
                "what the interpolation gives the multitask model",
                differences(best, value("plain_value", True)),
                decides=False,
            ),
            judge(
                "what it gives the merge",
                differences(value("wise_ft_value", False), value("plain_value", False)),
                decides=False,
            ),
        ],
        [],
    )
