"""Does a suite measure anything? Checks that every one of its datasets must pass.

    python tests/benchmarks/suite_validation.py --workdir curves

Prints, per dataset, the scores of chance, both bases, the expert and a model trained on
it alone, and whether each check passes. About ten minutes of tiny.py on two idle cores;
a workdir of the same config's sweep has most of the steps already.
"""

import argparse
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from merging import sweep
from merging.runtime import config as configs
from merging.runtime import text, workdir
from merging.runtime.errors import UserError
from merging.sweep.steps import Step

TINY = Path(__file__).parents[2] / "configs" / "scaling_curves" / "tiny.py"
SURE = 3.0  # standard errors of a difference
CEILING = 0.9  # share of the way from chance to the expert
LEARNED = 0.5  # share of the way from chance to perfect


class Check(NamedTuple):
    """One dataset at one size: its scores, and what is wrong with it.

    Attributes:
      expert_pt, expert_it: the held-in experts of either base; None for held-out.
      single_task: a model trained on the held-out dataset alone; None for held-in.
      faults: empty if the dataset passes.
    """

    size: str
    dataset: str
    split: str
    chance: float
    base_pt: float
    base_it: float
    expert_pt: float | None
    expert_it: float | None
    single_task: float | None
    faults: tuple[str, ...]


def validated(config: Any, folder: Path) -> bool:
    """Train what the checks need, print their table, and return whether all pass.

    Shares its steps with a sweep of the same config in the same workdir.

    Raises:
      UserError: as `merging.sweep`.
    """
    experiment = sweep.read(config)
    if experiment.given:
        raise UserError(
            "a suite is held against bases of both kinds, trained from nothing; given "
            "checkpoints have no such pair. Name a config without given."
        )
    grid = sweep.Grid(experiment)
    store, _ = sweep.open_store(config, folder)
    with workdir.only_driver(store.workdir):
        sweep.finish(_steps(grid), experiment, store, "suite validation")
    found = [_check(grid, store, size, d) for size, d in _cells(experiment)]
    print(table(found))
    whole = _whole_suite(grid, store)
    print("\n" + "\n".join(f"{'pass' if ok else 'FAIL'}  {text}" for text, ok in whole))
    failed = sum(bool(check.faults) for check in found)
    failed += sum(not ok for _, ok in whole)
    print(f"\n{len(found) + len(whole)} checks, {failed} failed.")
    return not failed


def table(found: Iterable[Check]) -> str:
    """Return the checks as text, a dataset at a size a line."""
    head = ("size", "dataset", "chance", "PT", "IT", "expert PT", "expert IT", "alone")
    lines = [[*head, ""]]
    for check in found:
        scores = (check.chance, check.base_pt, check.base_it)
        scores += (check.expert_pt, check.expert_it, check.single_task)
        shown = ["" if score is None else f"{score:.3f}" for score in scores]
        verdict = "pass" if not check.faults else "FAIL " + "; ".join(check.faults)
        lines.append([check.size, check.dataset, *shown, verdict])
    return text.table(lines, right=range(2, 8))


def standard_error(value: float, examples: int) -> float:
    """Return an upper bound of a mean score's standard error, scores being in 0..1.

    Exact for accuracy and exact match; F1 and ROUGE vary less than a coin does.
    """
    return math.sqrt(max(value * (1 - value), 0.0) / examples)


def _cells(experiment: sweep.Experiment):
    return [(size, d) for size in experiment.sizes for d in experiment.suite.datasets]


def _steps(grid: sweep.Grid) -> list[Step]:
    experiment = grid.experiment
    steps = []
    for size in experiment.sizes:
        for base in ("pt", "it"):
            steps.append(grid.base(size, base))
            for category in experiment.suite.categories:
                steps.append(grid.expert(size, base, category, 0))
        for dataset in experiment.suite.datasets:
            if dataset.split == "held_out":
                steps.append(grid.single_task(size, "it", dataset.name))
    return steps


def _check(grid: sweep.Grid, store: sweep.Store, size: str, dataset) -> Check:
    def score(step: Step) -> float:
        return store.output(step)["test"][dataset.name]

    bases = {base: score(grid.base(size, base)) for base in ("pt", "it")}
    experts: dict[str, float] = {}
    alone = None
    if dataset.split == "held_in":
        for base in bases:
            experts[base] = score(grid.expert(size, base, dataset.category, 0))
    else:
        alone = score(grid.single_task(size, "it", dataset.name))
    examples = store.output(grid.base(size, "it"))["examples"][dataset.name]
    return Check(
        size=size,
        dataset=dataset.name,
        split=dataset.split,
        chance=dataset.chance,
        base_pt=bases["pt"],
        base_it=bases["it"],
        expert_pt=experts.get("pt"),
        expert_it=experts.get("it"),
        single_task=alone,
        faults=tuple(_faults(dataset.chance, bases, experts, alone, examples)),
    )


def _faults(chance: float, bases, experts, alone, examples: int):
    for base, expert in experts.items():
        if not _surely_above(expert, bases[base], examples):
            yield f"{base} expert not above its base"
        elif bases[base] - chance > CEILING * (expert - chance):
            yield f"{base} base near its expert"
    if alone is not None:
        if alone - chance < LEARNED * (1 - chance):
            yield "not learned when trained alone"
        for base, score in bases.items():
            if score - chance > CEILING * (1 - chance):
                yield f"{base} base near the ceiling"


def _surely_above(high: float, low: float, examples: int) -> bool:
    error = standard_error(high, examples) ** 2 + standard_error(low, examples) ** 2
    return high - low > SURE * error**0.5


def _whole_suite(grid: sweep.Grid, store: sweep.Store) -> list[tuple[str, bool]]:
    """Return what must hold over all datasets together."""
    experiment = grid.experiment
    held_out = [d.name for d in experiment.suite.datasets if d.split == "held_out"]
    found = []
    for size in experiment.sizes:
        means = {}
        for base in ("pt", "it"):
            test = store.output(grid.base(size, base))["test"]
            means[base] = sum(test[d] for d in held_out) / len(held_out)
        text = (
            f"{size}: IT beats PT zero-shot on held-out "
            f"({means['it']:.3f} against {means['pt']:.3f})"
        )
        found.append((text, means["it"] > means["pt"]))
    losses = [store.output(grid.base(size, "pt"))["loss"] for size in experiment.sizes]
    shown = ", ".join(
        f"{s} {loss:.3f}" for s, loss in zip(experiment.sizes, losses, strict=True)
    )
    ordered = losses == sorted(losses, reverse=True)
    found.append((f"larger models have lower pretraining loss ({shown})", ordered))
    return found


def main() -> int:
    """Validate the suite of a config; the exit status is 1 if a check fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default=str(TINY), help="of a sweep (tiny.py)")
    parser.add_argument("--workdir", type=Path, required=True)
    arguments = parser.parse_args()
    loaded = configs.load(arguments.config)
    return 0 if validated(loaded, arguments.workdir) else 1


if __name__ == "__main__":
    sys.exit(main())
