"""The papers' headline claims, held against the rows: does each hold here?

MS is "What Matters for Model Merging at Scale?" (arXiv 2410.03617), WF "Why Do More
Experts Fail?" (arXiv 2505.21226). Every claim is turned into differences, one per
comparison and seed, that are positive where the claim is right.
"""

from collections.abc import Iterable, Mapping, Sequence

from merging.report.judging import Differences, Verdict, conclude, judge, minus
from merging.report.saturation import gains
from merging.report.summaries import Grid, by_seed, measure, spread

# "Close to its experts": MS has about 0.97 there.
CLOSE = 0.95


def verdicts(grid: Grid) -> tuple[Verdict, ...]:
    """Judge every headline claim; always all of them, in one order."""
    return (
        _instruction_tuned_merges_better(grid),
        _larger_merges_better(grid),
        _held_out_improves_with_experts(grid),
        _methods_converge(grid),
        _largest_is_close_to_experts(grid),
        _passes_multitask(grid),
        _gains_shrink(grid),
    )


def _instruction_tuned_merges_better(grid: Grid) -> Verdict:
    def differences(name: str) -> Differences:
        return {
            (size, method, K): minus(
                by_seed(grid.models(size, "it", method, K), name),
                by_seed(grid.models(size, "pt", method, K), name),
            )
            for size in grid.sizes
            for method in grid.methods
            for K in grid.counts
        }

    floors = {
        base: measure(
            [m for c, ms in grid.cells.items() for m in ms
             if c.base == base and c.method in grid.methods],
            "floor",
        ).mean
        for base in grid.bases
    }  # fmt: skip
    note = ""
    if None not in (pt := floors.get("pt"), it := floors.get("it")):
        note = (
            f"The unmerged base alone reaches {it:.2f} of the experts for IT and "
            f"{pt:.2f} for PT: the held-in ratio starts from there, the normalised "
            "gain does not."
        )
    return conclude(
        "it_over_pt",
        "MS",
        "Experts of instruction-tuned (IT) bases merge better than experts of "
        "pretrained (PT) bases, at every size, method and K",
        [
            judge("held-in ratio, IT minus PT", differences("held_in")),
            judge("normalised gain, IT minus PT", differences("normalised_gain")),
            judge(
                "held-out ratio, IT minus PT", differences("held_out"), decides=False
            ),
        ],
        [note],
    )


def _larger_merges_better(grid: Grid) -> Verdict:
    sizes = list(grid.sizes)

    def differences(name: str, pairs: Iterable[tuple[str, str]]) -> Differences:
        return {
            (small, large, base, method, K): minus(
                by_seed(grid.models(large, base, method, K), name),
                by_seed(grid.models(small, base, method, K), name),
            )
            for small, large in pairs
            for base in grid.bases
            for method in grid.methods
            for K in grid.counts
        }

    ends = [(sizes[0], sizes[-1])] if len(sizes) > 1 else []
    steps = list(zip(sizes, sizes[1:], strict=False))
    largest = f"{sizes[-1]} minus {sizes[0]}" if ends else "largest minus smallest"
    return conclude(
        "larger_merges_better",
        "MS",
        "Larger models merge better",
        [
            judge(f"held-in ratio, {largest}", differences("held_in", ends)),
            judge(
                f"normalised gain, {largest}",
                differences("normalised_gain", ends),
            ),
            judge("held-in ratio, each step up", differences("held_in", steps), False),
            judge(
                "normalised gain, each step up",
                differences("normalised_gain", steps),
                False,
            ),
        ],
        ["" if ends else "One size only."],
    )


def _held_out_improves_with_experts(grid: Grid) -> Verdict:
    def differences(pairs: Iterable[tuple[int, int]]) -> Differences:
        return {
            (few, many, size, base, method): minus(
                by_seed(grid.models(size, base, method, many), "held_out"),
                by_seed(grid.models(size, base, method, few), "held_out"),
            )
            for few, many in pairs
            for size in grid.sizes
            for base in grid.bases
            for method in grid.methods
        }

    K = grid.counts
    ends = [(K[0], K[-1])] if len(K) > 1 else []
    largest = f"K={K[-1]} minus K={K[0]}" if ends else "largest minus smallest K"
    steps = differences(zip(K, K[1:], strict=False))
    return conclude(
        "held_out_improves_with_experts",
        "MS",
        "Held-out performance improves as more experts are merged",
        [
            judge(f"held-out ratio, {largest}", differences(ends)),
            judge("held-out ratio, each step up in K", steps, decides=False),
        ],
        ["" if ends else "Fewer than two values of K."],
    )


def _methods_converge(grid: Grid) -> Verdict:
    sizes = list(grid.sizes)

    def differences(name: str) -> Differences:
        found = {}
        for base in grid.bases if len(sizes) > 1 else ():
            for K in grid.counts:
                small, large = (
                    {
                        method: by_seed(grid.models(size, base, method, K), name)
                        for method in grid.methods
                    }
                    for size in (sizes[0], sizes[-1])
                )
                both = [m for m in grid.methods if small[m] and large[m]]
                found[base, K] = minus(_range(small, both), _range(large, both))
        return found

    largest = [
        m
        for cell, models in grid.cells.items()
        for m in models
        if sizes and cell.size == sizes[-1] and m.scale_at_edge is not None
    ]
    edge = sum(m.scale_at_edge for m in largest)
    ends = (
        f"{sizes[0]} minus {sizes[-1]}" if len(sizes) > 1 else "smallest minus largest"
    )
    return conclude(
        "methods_converge",
        "MS",
        "The methods converge at scale (their spread, best minus worst, shrinks)",
        [
            judge(f"spread of held-in ratio, {ends}", differences("held_in")),
            judge(
                f"spread of normalised gain, {ends}",
                differences("normalised_gain"),
            ),
        ],
        [
            "" if len(sizes) > 1 else "One size only.",
            "" if len(grid.methods) > 1 else "Fewer than two methods.",
            f"At {sizes[-1]} λ lies at an end of its grid in {edge} of {len(largest)} "
            "merges: methods whose λ is pinned near zero agree for a dull reason."
            if edge
            else "",
        ],
    )


def _range(scores: Mapping[str, Mapping[int, float]], methods: Sequence[str]):
    """Seed → best minus worst method, over the seeds that every method has."""
    if len(methods) < 2:
        return {}
    seeds = set.intersection(*(set(scores[method]) for method in methods))
    return {
        seed: max(scores[m][seed] for m in methods)
        - min(scores[m][seed] for m in methods)
        for seed in sorted(seeds)
    }


def _largest_is_close_to_experts(grid: Grid) -> Verdict:
    # An expert whose datasets were left out (`gate`) is one all the same.
    experts = {*grid.categories, *(one for row in grid.rows for one in row.subset)}
    size, K = list(grid.sizes)[-1], len(experts)

    def over(name: str, threshold: float) -> Differences:
        return {
            (method,): {
                seed: value - threshold
                for seed, value in by_seed(
                    grid.models(size, "it", method, K), name
                ).items()
            }
            for method in grid.methods
        }

    models = [m for method in grid.methods for m in grid.models(size, "it", method, K)]
    note = f"No IT merge of all {K} experts at {size}."
    if models:
        values = {
            n: measure(models, n)
            for n in ("held_in", "floor", "normalised_gain", "held_out")
        }
        shown = {
            n: "-" if v.mean is None else f"{v.mean:.3f}" for n, v in values.items()
        }
        best = measure(models, "held_in").high
        note = (
            f"Mean over methods at {size}, K={K}: held-in {shown['held_in']} of the "
            f"experts (MS about 0.97; best single merge "
            f"{'-' if best is None else f'{best:.3f}'}; the unmerged base "
            f"{shown['floor']}; normalised gain {shown['normalised_gain']}), held-out "
            f"{shown['held_out']} of the base (MS about 1.18)."
        )
    return conclude(
        "largest_it_close_to_experts",
        "MS",
        f"At the largest size an IT merge of all experts is close to its experts "
        f"held-in (ratio of {CLOSE} or more) and above its base held-out (above 1)",
        [
            judge(f"held-in ratio minus {CLOSE}", over("held_in", CLOSE)),
            judge("held-out ratio minus 1", over("held_out", 1.0)),
        ],
        [note],
    )


def _passes_multitask(grid: Grid) -> Verdict:
    # MS: two of its four sizes, 24B and 64B.
    sizes = list(grid.sizes)[len(grid.sizes) // 2 :]
    K = grid.counts[-1] if grid.counts else 0

    def differences(multitask: str) -> Differences:
        return {
            (size, method): minus(
                by_seed(grid.models(size, "it", method, K), "held_out"),
                by_seed(grid.models(size, "it", multitask), "held_out"),
                baseline=True,
            )
            for size in sizes
            for method in grid.methods
        }

    where = f"held-out ratio at {', '.join(sizes)}, K={K}, minus"
    return conclude(
        "large_it_passes_multitask",
        "MS",
        "Large IT merges pass the multitask model on held-out tasks",
        [
            judge(f"{where} fixed-step multitask", differences("multitask")),
            judge(f"{where} early-stopped multitask", differences("multitask_early")),
        ],
        [],
    )


def _gains_shrink(grid: Grid) -> Verdict:
    differences: dict[tuple, dict[int, float]] = {}
    gainless = 0
    for size in grid.sizes:
        for base in grid.bases:
            for method in grid.methods:
                found = gains(grid, size, base, method, "gain")
                halves = _halves(found.by_seed) if found else None
                if not halves:
                    continue
                first, second = halves
                if spread(first.values()).mean <= 0:
                    gainless += 1
                    continue
                differences[size, base, method] = minus(first, second)
    return conclude(
        "marginal_gains_shrink",
        "WF",
        "The gain per added expert shrinks as experts are added",
        [judge("gain per expert, first half of the K range minus second", differences)],
        [
            f"{gainless} combinations of size, base and method gained nothing over "
            "their base in the first half and are left out: there is no gain to shrink."
            if gainless
            else ""
        ],
    )


def _halves(by_seed: Mapping[int, Mapping[int, float]]):
    """Gain per expert from the base to the middle K, and from there to the largest."""
    counts = sorted(by_seed)
    if len(counts) < 2:
        return None
    last = counts[-1]
    middle = min(counts[:-1], key=lambda K: abs(K - last / 2))
    shared = sorted(by_seed[middle].keys() & by_seed[last].keys())
    first = {seed: by_seed[middle][seed] / middle for seed in shared}
    second = {
        seed: (by_seed[last][seed] - by_seed[middle][seed]) / (last - middle)
        for seed in shared
    }
    return (first, second) if shared else None
