"""What explains saturation, held against the rows: theory, barriers, coverage.

Of a sweep's rows and of the analyses of its models (`merging analyze --config
analyze/sweep`). WF is "Why Do More Experts Fail?" (arXiv 2505.21226), MS "What Matters
for Model Merging at Scale?" (arXiv 2410.03617), TA "Task Arithmetic in the Tangent
Space" (arXiv 2305.12827). As in `verdicts`, a claim becomes differences that are
positive where it is right.
"""

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from merging.report.analyses import Found
from merging.report.judging import (
    ClaimTest,
    Differences,
    Verdict,
    conclude,
    judge,
    minus,
)
from merging.report.saturation import gains
from merging.report.summaries import Grid
from merging.runtime.text import Table

# A further expert counts as bringing nothing when it brings less than this share of
# what the first did.
NOTHING = 0.05
# How near two shares of the way to the largest K must be to be called alike.
NEAR = 0.1
_THEORIES = {
    "parameters": "K* of the kinematic formula, in all parameters",
    "coordinates": "K* of it, in the coordinates that carry the stack",
    "width": "marginal Gaussian width",
    "rank": "marginal effective rank",
}
COVERED = {
    "touched": "share of weights moved",
    "coordinates": "weights that carry the change, of all",
    "matrix_effective_rank": "effective rank of the changed matrices",
    "matrix_stable_rank": "stable rank of them",
}
BETWEEN = {
    "experts": "expert → expert",
    "base": "base → merge",
    "merge": "expert → merge",
}
BySeed = dict[int, float]


class Analysed:
    """The numbers of a sweep's analyses, by size and base, and then by seed.

    Args:
      rows: of "sweep" analyses, one or several.

    Attributes:
      sizes: size → parameters, smallest first.
      bases: those that are there, PT first.
    """

    def __init__(self, rows: Iterable[Found]):
        self._rows: dict[tuple[str, str], dict[str, dict[int, list[Found]]]] = {}
        sizes: dict[str, int] = {}
        for row in rows:
            size, base, seed = row.group.split("/")
            if row.quantity == "params" and row.value is not None:
                sizes[size] = int(row.value)
            of = self._rows.setdefault((size, base), {}).setdefault(row.quantity, {})
            of.setdefault(int(seed.removeprefix("seed")), []).append(row)
        self.sizes = dict(sorted(sizes.items(), key=lambda of: of[1]))
        have = {base for _, base in self._rows}
        self.bases = tuple(base for base in ("pt", "it") if base in have)

    def values(
        self,
        size: str,
        base: str,
        quantity: str,
        wanted: Callable[[Found], bool] = lambda row: True,
    ) -> BySeed:
        """Return seed → the mean over the rows of a quantity that are wanted."""
        found = {}
        for seed, rows in self._rows.get((size, base), {}).get(quantity, {}).items():
            known = [r.value for r in rows if r.value is not None and wanted(r)]
            if known:
                found[seed] = statistics.fmean(known)
        return dict(sorted(found.items()))

    def along(self, size: str, base: str, quantity: str) -> dict[int, dict[int, float]]:
        """Return K → seed → value, of a quantity along K."""
        found: dict[int, dict[int, float]] = {}
        for seed, rows in self._rows.get((size, base), {}).get(quantity, {}).items():
            for row in rows:
                if row.at is not None and row.value is not None and row.by == "":
                    found.setdefault(int(row.at), {})[seed] = row.value
        return dict(sorted(found.items()))

    def at_most(self, size: str, base: str, quantity: str) -> BySeed:
        """Return seed → a quantity along K at the largest K."""
        curve = self.along(size, base, quantity)
        return curve[max(curve)] if curve else {}

    def barrier(self, size: str, base: str, between: str) -> BySeed:
        """Return seed → mean height of the loss barriers of a kind of `BETWEEN`."""

        def kind(row: Found) -> str:
            merged = [_is_merge(name) for name in row.of]
            if row.of[0] == "base":
                # The multitask model is no merge.
                return "base" if merged[-1] else ""
            return "merge" if merged[-1] else "experts"

        return self.values(size, base, "loss_barrier", lambda row: kind(row) == between)

    def disentangled(self, size: str, base: str, scale: float) -> BySeed:
        """Return seed → ξ at α = scale, the mean over the experts."""
        return self.values(
            *(size, base, "disentanglement_error"),
            lambda row: bool(row.of) and row.at == scale,
        )

    def covered(self, size: str, base: str, method: str, K: int, of: str) -> BySeed:
        """Return seed → a quantity of a merge; coordinates as a share of all."""
        name = f"{method}_K{K}"
        found = self.values(
            size, base, of, lambda row: tuple(row.of) == (name,) and row.by == "model"
        )
        whole = self.sizes[size] if of == "coordinates" else 1
        return {seed: value / whole for seed, value in found.items()}

    @property
    def scales(self) -> tuple[float, ...]:
        """The α at which ξ was measured."""
        every = (of.get("disentanglement_error", {}) for of in self._rows.values())
        return tuple(
            sorted({r.at for of in every for rows in of.values() for r in rows})
        )


def _is_merge(name: str) -> bool:
    return name.rpartition("_K")[2].isdigit() and "_K" in name


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


def measured(points: Mapping[int, float]) -> int | None:
    """Return the first K that brings less than `NOTHING` of what the first brought.

    Args:
      points: K → gain over the base; the base, at K = 0, has none.

    Returns:
      K; 0 where the first experts bring nothing; None where none is reached.
    """
    before, below, first = 0, 0.0, None
    for K, gain in sorted(points.items()):
        each = (gain - below) / (K - before)
        if first is None:
            first = each
            if first <= 0:
                return 0
        elif each < NOTHING * first:
            return K
        before, below = K, gain
    return None


def predicted(found: Analysed, size: str, base: str) -> dict[str, dict[int, float]]:
    """Return theory → seed → the K where it says that saturation comes.

    Infinity where it comes at none of the K that were looked at (K* is extrapolated).
    """
    made = {
        name: found.values(
            size, base, "threshold", lambda row, name=name: tuple(row.of) == (name,)
        )
        for name in ("parameters", "coordinates")
    }
    for name, quantity in (("width", "mean_width"), ("rank", "effective_rank")):
        curve = found.along(size, base, quantity)
        seeds = {seed for values in curve.values() for seed in values}
        made[name] = {}
        for seed in sorted(seeds):
            own = {K: v[seed] for K, v in curve.items() if seed in v}
            made[name][seed] = float(measured(own) or "inf")
    return made


def curves(grid: Grid, size: str, base: str, method: str) -> dict[int, BySeed]:
    """Return K → seed → gain over the base on all held-in datasets."""
    found = gains(grid, size, base, method, "gain")
    return {K: dict(of) for K, of in found.by_seed.items()} if found else {}


def _of_seed(curve: Mapping[int, Mapping[int, float]], seed: int) -> dict[int, float]:
    return {K: values[seed] for K, values in curve.items() if seed in values}


def _where_the_theory_says(grid: Grid, found: Analysed) -> Verdict:
    gainless, never, every = 0, 0, 0
    tests = []
    for theory, words in _THEORIES.items():
        differences: dict[tuple, dict[int, float]] = {}
        for size in found.sizes:
            for base in found.bases:
                says = predicted(found, size, base)[theory]
                for method in grid.methods:
                    curve = curves(grid, size, base, method)
                    for seed, star in says.items():
                        own = _of_seed(curve, seed)
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


def step(K: float, counts: Iterable[int]) -> int:
    """Return the number of the grid's steps before K: those of one step are alike."""
    return sum(K > count for count in counts)


def _bends_as(grid: Grid, found: Analysed, key: str, quantity: str, words: str):
    differences: dict[tuple, dict[int, float]] = {}
    signed = []
    for size in found.sizes:
        for base in found.bases:
            curve = found.along(size, base, quantity)
            for method in grid.methods:
                gain = curves(grid, size, base, method)
                for seed in sorted({s for of in gain.values() for s in of}):
                    ours, theirs = _of_seed(gain, seed), _of_seed(curve, seed)
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


def table(grid: Grid, found: Analysed) -> Table:
    """Return what was measured and predicted of each size, base and run."""
    columns = ("size", "parameters", "base", "run", "curves", "saturate", "median K")
    columns += tuple(f"K by {name}" for name in _THEORIES)
    columns += ("critical density", "effective rank")
    columns += tuple(f"barrier {words}" for words in BETWEEN.values())
    columns += tuple(f"disentanglement error, α {scale:g}" for scale in found.scales)
    rows = [
        (size, params, base, seed, *_line(grid, found, size, base, seed))
        for size, params in found.sizes.items()
        for base in found.bases
        for seed in sorted(found.values(size, base, "params"))
    ]
    title = "Saturation, measured and predicted"
    return Table("saturation", title, columns, tuple(rows))


def _line(
    grid: Grid, found: Analysed, size: str, base: str, seed: int
) -> Iterator[float | str | None]:
    """Yield the cells of a run: how many curves saturate, and what the theory says."""
    own = [_of_seed(curves(grid, size, base, method), seed) for method in grid.methods]
    seen = [measured(points) for points in own if len(points) > 1]
    at = sorted(K or float("inf") for K in seen if K != 0)
    yield len(at)
    yield sum(K < float("inf") for K in at)
    yield _finite(statistics.median_low(at) if at else None)
    for says in predicted(found, size, base).values():
        yield _finite(says.get(seed))
    yield found.values(size, base, "critical_density").get(seed)
    yield found.at_most(size, base, "effective_rank").get(seed)
    for between in BETWEEN:
        yield found.barrier(size, base, between).get(seed)
    for scale in found.scales:
        yield found.disentangled(size, base, scale).get(seed)


def _finite(K: float | None) -> float | str | None:
    """Return a K as a table has it: beyond those that were looked at, in words."""
    return "beyond" if K == float("inf") else K
