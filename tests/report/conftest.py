"""A synthetic experiment: the real one's shape, scores from formulas."""

import math
import random

import pytest

from merging.runtime.results import Row, normalise

CATEGORIES = tuple(f"skill{i}" for i in range(8))
METHODS = ("average", "task_arithmetic", "ties", "dare_ties", "rht")
SIZES = {"1x": 16_000, "8x": 128_000, "24x": 384_000, "64x": 1_024_000}


def make_row(**given) -> Row:
    facts = dict(
        suite="miniworld",
        family="tiny",
        size="1x",
        params=16_000,
        base="pt",
        method="ties",
        parameters={},
        K=1,
        subset=("skill0",),
        seed=0,
        dataset="a0",
        category="skill0",
        split="held_in",
        metric="accuracy",
        chance=0.25,
        merged=True,
        value=0.5,
        value_of_expert=0.8,
        value_of_base=0.2,
        normalised=None,
        examples=256,
        wall_seconds=0.1,
        git_revision="abc",
        config_hash="c0",
    )
    return Row(**facts | given)


def model_rows(size, base, method, subset, seed, value, expert, bottom, **more):
    """All 16 + 7 rows of one model; value, expert, bottom map a dataset."""
    rows = []
    names = [(c, "held_in", f"{c}_{i}") for c in CATEGORIES for i in "ab"]
    names += [(f"new{i % 4}", "held_out", f"new{i}") for i in range(7)]
    for category, split, dataset in names:
        held_in = split == "held_in"
        v, b = value(dataset), bottom(dataset)
        e = expert(dataset) if held_in else None
        row = make_row(
            size=size,
            params=SIZES[size],
            base=base,
            method=method,
            K=len(subset),
            subset=tuple(subset),
            seed=seed,
            dataset=dataset,
            category=category,
            split=split,
            merged=held_in and category in subset,
            value=v,
            value_of_expert=e,
            value_of_base=b,
            normalised=normalise(v, e if held_in else b),
            **more,
        )
        rows.append(row)
    return rows


def experiment(
    sizes=tuple(SIZES),
    bases=("pt", "it"),
    methods=METHODS,
    counts=(2, 4, 6, 8),
    seeds=3,
):
    """A whole run: merges improve with size, fall with K; IT has a high floor."""
    rows = []
    for size in sizes:
        grow = math.log2(SIZES[size] / 16_000) / 6
        for base in bases:
            it = base == "it"

            def bottom(d, it=it, grow=grow):
                return (0.4 if it else 0.25) + 0.1 * grow + 0.01 * (len(d) % 3)

            def expert(d, grow=grow):
                return 0.8 + 0.12 * grow + 0.01 * (len(d) % 3)

            args = (expert, bottom)
            rows += model_rows(size, base, "base", (), 0, bottom, *args)
            for seed in range(seeds):
                luck = random.Random(f"{size} {base} {seed}")
                for kind, top in (("multitask", 0.95), ("multitask_early", 0.97)):

                    def multi(d, top=top, expert=expert, bottom=bottom):
                        return top * expert(d) if d.startswith("skill") else bottom(d)

                    rows += model_rows(size, base, kind, CATEGORIES, seed, multi, *args)
                for K in counts:
                    subset = tuple(sorted(luck.sample(CATEGORIES, K)))
                    for index, method in enumerate(methods):
                        share = 0.75 - 0.06 * K + 0.2 * grow
                        share += (index - 2) * 0.04 * (1.3 - grow) + luck.gauss(0, 0.03)
                        spill = 0.06 * (1 - math.exp(-K / 3)) + luck.gauss(0, 0.005)

                        def value(
                            d, share=share, spill=spill, e=expert, b=bottom, s=subset
                        ):
                            if d.startswith("new"):
                                return b(d) * (1 + spill)
                            if d.rpartition("_")[0] in s:
                                return b(d) + share * (e(d) - b(d))
                            return b(d) + spill

                        grid = [0.1, 0.2, 0.4, 0.8]
                        scale = luck.choice(grid)
                        settings = {"scale": scale, "scale_at_edge": scale == 0.1}
                        away = [abs(math.log2(tried / scale)) for tried in grid]
                        settings |= {
                            "tried_scales": grid,
                            "tried_scores": [0.9 - 0.1 * step for step in away],
                        }
                        if "ties" in method:
                            settings |= {"density": (0.2, 0.5)[seed % 2]}
                        if method == "average":
                            settings = {}
                        rows += model_rows(
                            *(size, base, method, subset, seed, value),
                            *args,
                            parameters=settings,
                        )
    return rows


@pytest.fixture
def row():
    return make_row


@pytest.fixture
def model():
    return model_rows


@pytest.fixture(scope="session")
def run():
    return experiment


@pytest.fixture(name="make_row")
def row_maker():
    """`make_row`, for tests that build rows one by one."""
    return make_row
