"""The job of `merging search`: a method's coefficients, chosen on validation.

WORKDIR/config.json        whose search this is
WORKDIR/references.jsonl   the base and every expert on the validation split
WORKDIR/grid.jsonl         task arithmetic by a grid of λ, to be compared with
WORKDIR/trials.jsonl       a line for each trial
WORKDIR/test.jsonl         base, experts, the grid's and the search's best on the test
                           split, which is not read before the search is over
WORKDIR/best.py            the best trial, a config of `merging merge`
WORKDIR/merged/            its checkpoint, with a manifest, if asked for
WORKDIR/search.png, .svg   the search's history, and a slice for each number
WORKDIR/data/              the suite's rows; WORKDIR/compiled/ JAX's programs
"""

import dataclasses
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from merging import checkpoints, methods, tasks
from merging.evaluation import bootstrap
from merging.merge import rules
from merging.merge.inputs import expert_names
from merging.merge.rules import Spec
from merging.runtime import (
    config as configs,
)
from merging.runtime import (
    config_keys,
    preemption,
    processes,
    storage,
    tree,
    workdir,
)
from merging.runtime.errors import UserError, nearest
from merging.runtime.progress import EventLog, Progress
from merging.sweep import scorers, trials
from merging.sweep.outcome import Outcome, publish
from merging.sweep.resident import Resident
from merging.sweep.scorers import Settings
from merging.sweep.trials import Lines, Recipe, Space, Trial

_HOW = ("workers", "merge")  # do not change what is found
_KEYS = {
    "base": "",
    "experts": tuple,
    "method": ConfigDict,
    "space": ConfigDict,
    "per_expert": (),
    "per_group": (),
    "groups": (),
    "layer_ranges": 0,
    "suite": ConfigDict,
    "tokenizer": "",
    "datasets": (),
    "count": 0,
    "test_count": 0,
    "batch_size": 128,
    "sampler": "tpe",
    "trials": int,
    "batch": 1,
    "points": 5,
    "search_seed": 0,
    "scales": (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0),
    "seed": 0,
    "bootstrap": {"resamples": 1000, "level": 0.95, "seed": 0},
    "workers": 1,
    "merge": False,
}
_NAMED = re.compile(r"([A-Za-z][\w-]*)=(.+)")


@dataclasses.dataclass(frozen=True)
class _Search:
    """A search, checked and ready.

    Attributes:
      config: with its defaults.
      settings: of the scorers.
      resident: the models, of which no weight is read yet.
      spec: the method, with the numbers that the config gives.
      space: what is searched.
    """

    config: ConfigDict
    settings: Settings
    resident: Resident
    spec: Spec
    space: Space


def search(config: Any, folder: Path | str) -> Path:
    """Search a method's coefficients, and report the best (see configs/search).

    Stopped at any moment and called again with the same config and folder, it goes on
    with the trials that it would have made.

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
    number, count = processes.process_id()
    if count > 1:
        raise UserError(
            f"this is process {number} of {count}, and a search is driven by one; "
            "--config.workers=N shares its trials out over processes of this machine."
        )
    folder = Path(storage.supported_path(folder, "--workdir")).absolute()
    asked = _read(config, folder)
    identity = _identity(asked)
    digest = configs.config_hash(identity)
    workdir.require_own(folder, digest, "search")
    with workdir.only_driver(folder):
        workdir.claim(folder, identity.to_dict(), digest, "search")
        outcome = _search(asked, folder)
        return publish(outcome, asked.resident, asked.settings)


def _read(config: Any, folder: Path) -> _Search:
    """Return what a config asks for; reads headers and no weight."""
    config = config_keys.completed(
        config,
        _KEYS,
        "merging search",
        "search/weights",
        remote=("base", "experts"),
    )
    _check(config)
    spec, file = _method(config.method.to_dict())
    experts = expert_names(config.experts)
    resident = Resident(config.base or None, experts)
    if methods.get(spec.name).needs_base and not config.base:
        raise UserError(f"{spec.name}: this needs the base; name it (base).")
    space = trials.space(
        spec,
        config.space.to_dict(),
        list(experts),
        per_expert=config.per_expert,
        per_group=config.per_group,
        groups=_groups(config, resident),
    )
    suite = config.suite.to_dict()
    settings = Settings(
        base=config.base or None,
        experts=experts,
        method_file=file,
        suite=suite.pop("name", ""),
        suite_settings=suite,
        tokenizer=config.tokenizer,
        datasets=tuple(config.datasets),
        counts={"validation": config.count, "test": config.test_count},
        batch_size=config.batch_size,
        seed=config.seed,
        bootstrap=bootstrap.Options(**config.bootstrap),
        merge=config.merge,
        folder=folder,
    )
    settings = settings.with_datasets(resident)
    # Patterns that match no leaf, say.
    middle = {d.label: (d.low + d.high) / 2 for d in space.dimensions}
    leaves = resident.inputs.first_leaves
    floats = [p for p in leaves if tree.dtype_class(leaves[p]) == "float"]
    rules.recipe(floats, *space.recipe(middle))
    return _Search(config, settings, resident, spec, space)


def _check(config: ConfigDict) -> None:
    faults = [] if config.experts else ["no experts: --config.experts=EXPERT1,EXPERT2"]
    for key, least in (
        *(("trials", 1), ("batch", 1), ("points", 2), ("batch_size", 1)),
        *(("layer_ranges", 0), ("workers", 0), ("search_seed", 0)),
        *(("count", 0), ("test_count", 0)),
    ):
        if config[key] < least:
            faults.append(f"{key} = {config[key]} must be {least} or more")
    if config.layer_ranges and config.groups:
        faults.append("both groups and layer_ranges, which makes groups: choose one")
    if config.bootstrap.resamples < 2 or not 0 < config.bootstrap.level < 1:
        faults.append("bootstrap needs 2 resamples or more, and a level in (0, 1)")
    if faults:
        raise UserError("this search cannot be run:\n" + "\n".join(faults))
    if config.sampler not in trials.SAMPLERS:
        raise nearest("sampler", config.sampler, trials.SAMPLERS)
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise UserError(
            "a search needs Optuna: pip install 'merging[search]'."
        ) from None


def _method(section: dict[str, Any]) -> tuple[Spec, str | None]:
    """Return the method of a config's section, and its file if it is the user's own."""
    name, file = section.pop("name", ""), section.pop("file", "") or None
    if file:
        registered = methods.load_file(file)[1]
        if not name and len(registered) > 1:
            raise UserError(f"{file} registers {', '.join(registered)}: name one.")
        name = name or registered[0]
    spec = rules.parse(name)
    return spec._replace(parameters=spec.parameters | section), file


def _groups(config: ConfigDict, resident: Resident) -> dict[str, str]:
    """Return {name: pattern} of the groups of leaves with numbers of their own."""
    if config.layer_ranges:
        return layer_groups(resident.inputs.first_leaves, config.layer_ranges)
    found = {}
    for text in config.groups:
        named = _NAMED.fullmatch(text)
        found[named[1] if named else text] = named[2] if named else text
    return found


def layer_groups(paths: Sequence[str] | Mapping[str, Any], ranges: int) -> dict:
    """Return {name: pattern} of so many ranges of a model's layers, of equal length.

    Raises:
      UserError: the leaves' paths tell no layers, or fewer than there are ranges.
    """
    leaves = [leaf for path in paths if (leaf := rules.layer_leaf(path))]
    numbers = sorted({leaf.number for leaf in leaves})
    if len(numbers) < ranges:
        raise UserError(
            f"layer_ranges = {ranges}, and the leaves' paths tell {len(numbers)} layers"
            " apart; choose leaves by patterns (groups)."
        )
    cuts = [len(numbers) * i // ranges for i in range(ranges + 1)]
    parts = [numbers[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
    before = "|".join(sorted({re.escape(leaf.before) for leaf in leaves}))
    return {
        f"layers {part[0]}-{part[-1]}": f"(?:{before})(?:{'|'.join(map(str, part))})"
        r"(?![0-9])"
        for part in parts
    }


def _identity(asked: _Search) -> ConfigDict:
    """Return all that the trials depend on."""
    import optuna

    identity = ConfigDict(asked.config.to_dict())
    for key in _HOW:
        del identity[key]
    inputs = asked.resident.inputs
    identity.inputs = {
        name: storage.digest(checkpoints.content(source))
        for name, source in zip(inputs.names, inputs.sources, strict=True)
    }
    identity.suite_digest = tasks.suite(
        asked.settings.suite, **asked.settings.suite_arguments(asked.resident)
    ).digest
    identity.optuna = optuna.__version__
    return identity


def _search(asked: _Search, folder: Path) -> Outcome:
    """Do what is left of the references, the grid and the trials."""
    config, names = asked.config, list(asked.settings.experts)
    scales = config.scales if config.base else ()
    references = Lines(folder / "references.jsonl")
    grid, log = Lines(folder / "grid.jsonl"), Lines(folder / "trials.jsonl")
    wanted = [*([None] if config.base else []), *names]
    total = len(wanted) + len(scales) + config.trials
    if config.sampler == "grid":
        total += len(trials.grid(asked.space, config.points)) - config.trials
    made: list[Trial] = []
    events = EventLog(folder / "events.jsonl")
    with (
        Progress(
            total, "search", log=events, check=preemption.raise_if_asked
        ) as progress,
        scorers.Scorers(asked.settings, asked.resident, config.workers) as where,
    ):
        progress.skip(len(references.read) + len(grid.read) + len(log.read))
        todo = [m for m in wanted if m not in [r["model"] for r in references.read]]
        for line in where.models(todo):
            references.read.append(line)
            references.add(line)
            progress.advance(note="references")
        measure = Measure(references.read)
        done = [line["scale"] for line in grid.read]
        left = [scale for scale in scales if scale not in done]
        recipes = [Recipe(f"task_arithmetic(scale={scale!r})", ()) for scale in left]
        for scale, line in zip(left, where.merges(recipes), strict=True):
            line = {"scale": scale, "value": measure(line["datasets"])} | line
            grid.read.append(line)
            grid.add(line)
            progress.advance(note="task arithmetic by the grid")
        best_of_grid = max(grid.read, key=lambda line: line["value"], default=None)
        kept = {line["number"]: line for line in log.read}

        def evaluate(new: Sequence[tuple[int, dict]]) -> Iterator[dict[str, Any]]:
            recipes = [asked.space.recipe(point) for _, point in new]
            for (number, point), line in zip(new, where.merges(recipes), strict=True):
                value = measure(line["datasets"])
                line = {"number": number, "point": point, "value": value} | line
                log.add(line)
                yield line

        for trial in trials.search(
            asked.space,
            evaluate,
            sampler=config.sampler,
            trials=config.trials,
            batch=config.batch,
            seed=config.search_seed,
            points=config.points,
            begin=trials.starts(
                asked.space,
                asked.spec.parameters,
                best_of_grid and best_of_grid["scale"],
            ),
            kept=kept,
        ):
            made.append(trial)
            if trial.number not in kept:
                best = max(one.value for one in made)
                progress.advance(note=f"best {best:.4f}, last {trial.value:.4f}")
    print(f"search: {len(made)} trials in {folder}", file=sys.stderr)
    return Outcome(asked.space, made, best_of_grid, names)


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
