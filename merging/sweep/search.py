"""The job of `merging search`: a method's coefficients, chosen on validation.

WORKDIR/config.json        whose search this is
WORKDIR/references.jsonl   the base and every expert on the validation split
WORKDIR/grid.jsonl         task arithmetic by a grid of λ, to be compared with
WORKDIR/trials.jsonl       a line for each trial
WORKDIR/test.jsonl         base, experts, the grid's and the search's best on the test
                           split, which is not read before the search is over
WORKDIR/best.py            the best trial, a config of `merging merge`
WORKDIR/merged_N/          its checkpoint, with a manifest; N is the trial
WORKDIR/report/index.html  a page of it all
WORKDIR/search.png, .svg   the search's history, and a slice for each number
WORKDIR/data/              the suite's rows; WORKDIR/compiled/ JAX's programs
"""

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from merging.evaluation.job import progress
from merging.runtime import config as configs
from merging.runtime import processes, storage, workdir
from merging.runtime.errors import UserError
from merging.runtime.progress import EventLog, Progress
from merging.sweep import search_config, trials
from merging.sweep.outcome import Outcome, publish
from merging.sweep.scorers import Scorers, opened
from merging.sweep.search_config import Asked
from merging.sweep.space import Recipe, grid_points, starts
from merging.sweep.trials import Lines, Trial


def search(config: Any, folder: Path | str) -> Path:
    """Search a method's coefficients, and report the best (see configs/search).

    Called by every process of a job, it makes each trial on all their devices (`mesh`).
    Stopped at any moment and called again with the same config and folder, it goes on
    with the trials that it would have made; so it does with a larger number of trials.

    Args:
      config: such as `merging.runtime.config.load("search/weights")`.
      folder: the workdir.

    Returns:
      The best trial's merge config.

    Raises:
      UserError: what cannot be searched, another config's workdir, or one in which
        another process works.
      Preempted: the system asked to stop; finished trials are kept.
    """
    folder = Path(storage.supported_path(folder, "--workdir")).absolute()
    asked = search_config.read(config, folder)
    identity = search_config.identity(asked)
    digest = configs.config_hash(identity)
    processes.broadcast(lambda: workdir.require_own(folder, digest, "search"))
    with contextlib.ExitStack() as held:
        only = workdir.only_driver(folder)
        processes.broadcast(lambda: held.enter_context(only))
        record = identity.to_dict()
        processes.broadcast(lambda: workdir.claim(folder, record, digest, "search"))
        scorers = held.enter_context(
            opened(asked.settings, asked.resident, asked.where)
        )
        outcome = _search(asked, scorers, folder)
        return publish(outcome, scorers, asked.settings)


def _search(asked: Asked, scorers: Scorers, folder: Path) -> Outcome:
    """Do what is left of the references, the grid and the trials."""
    config, names = asked.config, list(asked.settings.experts)
    models = [*([None] if config.base else []), *names]
    scales = config.scales if config.base else ()
    count = config.trials
    if config.sampler == "grid":
        count = len(grid_points(asked.space, config.points))
    kept = [
        Lines(folder / "references.jsonl", "model", "datasets"),
        Lines(folder / "grid.jsonl", "scale", "value", "method"),
        Lines(folder / "trials.jsonl", "number", "point", "value"),
    ]
    first = processes.is_first()
    if first and len(kept[2].read) < count:
        for line in _advice(asked):
            print(f"search: {line}", file=sys.stderr)
    log = EventLog(folder / "events.jsonl" if first else None)
    total = len(models) + len(scales) + count
    with progress(total, "search", log=log) as shown:
        shown.skip(sum(len(lines.read) for lines in kept))
        references, grid, tried = kept
        _references(models, scorers, references, shown)
        measure = Measure(references.read)
        _grid(scales, scorers, measure, grid, shown)
        best = max(grid.read, key=lambda line: line["value"], default=None)
        made = _trials(asked, scorers, measure, best, tried, shown)
    if first:
        print(f"search: {len(made)} trials in {folder}", file=sys.stderr)
    return Outcome(asked.space, made, best, names)


def _advice(asked: Asked) -> Iterator[str]:
    """Yield what makes the trials slower than they need be."""
    config, workers = asked.config, asked.where.workers
    if asked.compiled:
        yield (
            f"each new value of {', '.join(asked.compiled)} compiles the merge anew; "
            "other numbers compile nothing"
        )
    if config.sampler in trials.LEARNING and config.batch < workers:
        yield (
            f"{workers} workers, and batch={config.batch} asks for no more trials at a "
            f"time: --config.batch={workers}"
        )


def _references(
    models: Sequence[str | None], scorers: Scorers, kept: Lines, shown: Progress
) -> None:
    """Score the experts, and the base (None), on validation."""
    there = [line["model"] for line in kept.read]
    for line in scorers.lines([name for name in models if name not in there]):
        kept.add(line)
        shown.advance(note="references")


def _grid(
    scales: Sequence[float],
    scorers: Scorers,
    measure: "Measure",
    kept: Lines,
    shown: Progress,
) -> None:
    """Score task arithmetic with every λ of the grid on validation."""
    there = [line["scale"] for line in kept.read]
    left = [scale for scale in scales if scale not in there]
    recipes = [Recipe(f"task_arithmetic(scale={scale!r})", ()) for scale in left]
    for scale, line in zip(left, scorers.lines(recipes), strict=True):
        kept.add({"scale": scale, "value": measure(line["datasets"])} | line)
        shown.advance(note="task arithmetic by the grid")


def _trials(
    asked: Asked,
    scorers: Scorers,
    measure: "Measure",
    grid: Mapping[str, Any] | None,
    kept: Lines,
    shown: Progress,
) -> list[Trial]:
    """Do the trials that are left; return all."""
    config, space = asked.config, asked.space
    finished = {line["number"]: line for line in kept.read}

    def evaluate(new: Sequence[tuple[int, dict]]) -> Iterator[dict[str, Any]]:
        recipes = [space.recipe(point) for _, point in new]
        for (number, point), line in zip(new, scorers.lines(recipes), strict=True):
            value = measure(line["datasets"])
            line = {"number": number, "point": point, "value": value} | line
            kept.add(line)
            yield line

    made: list[Trial] = []
    for trial in trials.search(
        space,
        evaluate,
        sampler=config.sampler,
        trials=config.trials,
        batch=config.batch,
        workers=asked.where.workers,
        seed=config.search_seed,
        points=config.points,
        begin=starts(space, asked.spec.parameters, grid and grid["scale"]),
        kept=finished,
    ):
        made.append(trial)
        if trial.number not in finished:
            best = max(one.value for one in made)
            shown.advance(note=f"best {best:.4f}, last {trial.value:.4f}")
    return made


class Measure:
    """The objective: the mean over datasets of a value over the best expert's.

    Attributes:
      best: {dataset: the best expert's value}, where it is not 0.

    Args:
      references: lines of the base and every expert on validation.
    """

    def __init__(self, references: Sequence[Mapping[str, Any]]):
        experts = [r["datasets"] for r in references if r["model"] is not None]
        best = {name: max(of[name] for of in experts) for name in experts[0]}
        self.best = {name: value for name, value in best.items() if value > 0}
        if not self.best:
            raise UserError(
                "no expert scores anything on any dataset's validation split: there is"
                " nothing to choose by."
            )

    def __call__(self, values: Mapping[str, float]) -> float:
        """Return the objective of a merge's values by dataset."""
        ratios = [values[name] / best for name, best in self.best.items()]
        return sum(ratios) / len(ratios)
