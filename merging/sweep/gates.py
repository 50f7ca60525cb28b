"""Does a suite measure anything? Gates that every one of its datasets must pass."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from merging.runtime.errors import UserError
from merging.sweep.driver import finish, open_store
from merging.sweep.experiment import Experiment, read
from merging.sweep.rows import standard_error
from merging.sweep.steps import Grid, Step
from merging.sweep.store import Store

SURE = 3.0  # standard errors of a difference
CEILING = 0.9  # share of the way from chance to the expert
LEARNED = 0.5  # share of the way from chance to perfect


class Gate(NamedTuple):
    """One dataset at one size: its scores, and what is wrong with it.

    Attributes:
      expert_pt, expert_it: the held-in experts of either base; None for held-out.
      direct: a model trained on the held-out dataset itself; None for held-in.
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
    direct: float | None
    faults: tuple[str, ...]


def gates(config: Any, workdir: Path | str) -> bool:
    """Train what the gates need, print their table, and return whether all pass.

    Shares its steps with a sweep of the same config in the same workdir.

    Raises:
      UserError: as `merging.sweep.run`.
    """
    experiment = read(config)
    if experiment.given:
        raise UserError(
            "gates hold a suite against bases of both kinds, trained from nothing; "
            "given checkpoints have no such pair. Name a config without given."
        )
    grid = Grid(experiment)
    store, _ = open_store(config, workdir)
    finish(_steps(grid), experiment, store, "gates")
    found = [_gate(grid, store, size, d) for size, d in _cells(experiment)]
    print(table(found))
    whole = _whole_suite(grid, store)
    print("\n" + "\n".join(f"{'pass' if ok else 'FAIL'}  {text}" for text, ok in whole))
    failed = sum(bool(gate.faults) for gate in found) + sum(not ok for _, ok in whole)
    print(f"\n{len(found) + len(whole)} gates, {failed} failed.")
    return not failed


def table(found: Iterable[Gate]) -> str:
    """Return the gates as text, a dataset at a size a line."""
    head = ("size", "dataset", "chance", "PT", "IT", "expert PT", "expert IT", "direct")
    lines = [[*head, ""]]
    for gate in found:
        scores = (gate.chance, gate.base_pt, gate.base_it)
        scores += (gate.expert_pt, gate.expert_it, gate.direct)
        shown = ["" if score is None else f"{score:.3f}" for score in scores]
        verdict = "pass" if not gate.faults else "FAIL " + "; ".join(gate.faults)
        lines.append([gate.size, gate.dataset, *shown, verdict])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at in (0, 1, 8) else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cells(experiment: Experiment):
    return [(size, d) for size in experiment.sizes for d in experiment.suite.datasets]


def _steps(grid: Grid) -> list[Step]:
    experiment = grid.settings
    steps = []
    for size in experiment.sizes:
        for base in ("pt", "it"):
            steps.append(grid.base(size, base))
            for category in experiment.suite.categories:
                steps.append(grid.expert(size, base, category, 0))
        for dataset in experiment.suite.datasets:
            if dataset.split == "held_out":
                steps.append(grid.direct(size, "it", dataset.name))
    return steps


def _gate(grid: Grid, store: Store, size: str, dataset) -> Gate:
    def score(step: Step) -> float:
        return store.output(step)["test"][dataset.name]

    bases = {base: score(grid.base(size, base)) for base in ("pt", "it")}
    experts: dict[str, float] = {}
    direct = None
    if dataset.split == "held_in":
        for base in bases:
            experts[base] = score(grid.expert(size, base, dataset.category, 0))
    else:
        direct = score(grid.direct(size, "it", dataset.name))
    examples = store.output(grid.base(size, "it"))["examples"][dataset.name]
    return Gate(
        size=size,
        dataset=dataset.name,
        split=dataset.split,
        chance=dataset.chance,
        base_pt=bases["pt"],
        base_it=bases["it"],
        expert_pt=experts.get("pt"),
        expert_it=experts.get("it"),
        direct=direct,
        faults=tuple(_faults(dataset.chance, bases, experts, direct, examples)),
    )


def _faults(chance: float, bases, experts, direct, examples: int):
    for base, expert in experts.items():
        if not _surely_above(expert, bases[base], examples):
            yield f"{base} expert not above its base"
        elif bases[base] - chance > CEILING * (expert - chance):
            yield f"{base} base near its expert"
    if direct is not None:
        if direct - chance < LEARNED * (1 - chance):
            yield "not learned when trained directly"
        for base, score in bases.items():
            if score - chance > CEILING * (1 - chance):
                yield f"{base} base near the ceiling"


def _surely_above(high: float, low: float, examples: int) -> bool:
    error = standard_error(high, examples) ** 2 + standard_error(low, examples) ** 2
    return high - low > SURE * error**0.5


def _whole_suite(grid: Grid, store: Store) -> list[tuple[str, bool]]:
    """Return what must hold over all datasets together."""
    experiment = grid.settings
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
