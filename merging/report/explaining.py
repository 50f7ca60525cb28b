"""What explains saturation, held against the rows: theory, barriers, coverage.

Of a sweep's rows and of the analyses of its models (`merging analyze --config
analyze/sweep`). WF is "Why Do More Experts Fail?" (arXiv 2505.21226), MS "What Matters
for Model Merging at Scale?" (arXiv 2410.03617), TA "Task Arithmetic in the Tangent
Space" (arXiv 2305.12827). As in `verdicts`, a claim becomes differences that are
positive where it is right.
"""

import statistics
from collections.abc import Callable, Sequence

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
            *(found, "gains_bend_as_widths", "mean_width", "the Gaussian width"),
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
    gainless, never, every = 0, 0, 0
    tests = []
    for theory, words in THEORIES.items():
        differences: dict[tuple, dict[int, float]] = {}
        for size in found.sizes:
            for base in found.bases:
                says = predicted(found, size, base)[theory]
                for method in grid.methods:
                    curve = curves(grid, size, base, method)
                    for seed, star in says.items():
                        own = of_seed(curve, seed)
                        seen = measured(own)
                        if len(own) < 2 or seen == 0:
                            gainless += theory == "parameters" and seen == 0
                            continue
                        every += theory == "parameters"
                        never += theory == "parameters" and seen is None
                        same = step(star, own) == step(seen or float("inf"), own)
                        cell = differences.setdefault((size, base, method), {})
                        cell[seed] = 1.0 if same else -1.0
        name = f"{words}: the same step of K (+1) or another (−1)"
        tests.append(judge(name, differences, theory in ("parameters", "coordinates")))
    return conclude(
        "saturates_where_theory_says",
        "WF",
        "Gains saturate (a further expert brings less than 5 % of what the first "
        "brought) at the K where the theory says that experts no longer fit",
        tests,
        [
            f"Of {every} curves of one size, base, method and run, {never} do not "
            "saturate by the largest K."
            if every
            else "",
            f"{gainless} curves gain nothing at their smallest K and are left out."
            if gainless
            else "",
        ],
    )


def _bends_as(grid: Grid, found: Analysed, key: str, quantity: str, words: str):
    differences: dict[tuple, dict[int, float]] = {}
    signed = []
    for size in found.sizes:
        for base in found.bases:
            curve = found.along(size, base, quantity)
            for method in grid.methods:
                gain = curves(grid, size, base, method)
                for seed in sorted({s for of in gain.values() for s in of}):
                    ours, theirs = of_seed(gain, seed), of_seed(curve, seed)
                    both = sorted(ours.keys() & theirs.keys())
                    if len(both) < 2 or ours[both[-1]] <= 0:
                        continue
                    middle, last = both[(len(both) - 1) // 2], both[-1]
                    apart = ours[middle] / ours[last] - theirs[middle] / theirs[last]
                    signed.append(apart)
                    cell = differences.setdefault((size, base, method), {})
                    cell[seed] = NEAR - abs(apart)
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

    return conclude(
        "larger_need_a_smaller_share",
        "WF",
        "An expert of a larger model needs a smaller share of its weights to keep 99 % "
        "of its score",
        _falling(found, "mean critical density", density),
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
