"""What a sweep has made: each base with its experts and their merges, as folders."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from merging import models
from merging.runtime import storage, workdir
from merging.runtime.errors import UserError
from merging.runtime.storage import Folder
from merging.sweep import restoring
from merging.sweep.reading import read
from merging.sweep.steps import Grid, Step
from merging.sweep.store import Store


class Group(NamedTuple):
    """A base, the experts of one run, and what was made of them.

    Attributes:
      size, base, seed: whose.
      params: parameters of each model.
      start: the base's folder.
      experts: {category: folder}, in the order in which the run adds them.
      merges: {"METHOD_K8": folder} of those that were kept (`keep_merges`).
      multitask: folder of the multitask model, with early stopping the best on
        validation; "" if there is none.
    """

    size: str
    base: str
    seed: int
    params: int
    start: str
    experts: Mapping[str, str]
    merges: Mapping[str, str]
    multitask: str

    @property
    def name(self) -> str:
        """What rows call it: SIZE/BASE/seedN."""
        return f"{self.size}/{self.base}/seed{self.seed}"


def grid_of(store: Store) -> Grid:
    """Return the grid of a workdir, as its config.json has it.

    Raises:
      UserError: it holds no sweep.
    """
    path = store.workdir / workdir.CONFIG
    try:
        config = json.loads(path.read_text())["config"]
        if "experts_merged" not in config:  # a training's
            raise KeyError(config)
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{store.workdir} holds no sweep (no config.json that can be read); name "
            "the --workdir of one."
        ) from None
    try:
        return Grid(read(ConfigDict(config)))
    except UserError as error:
        raise UserError(
            f"the config in {store.workdir} can't be read here: {error}\n"
            "Its paths are as they were where the sweep was started."
        ) from error


def groups(folder: Folder | str) -> tuple[list[Group], dict[str, Any]]:
    """Return the groups of a sweep whose base and experts are finished.

    Returns:
      The groups, and the suite they were trained and tested on, as a config has it.

    Raises:
      UserError: the workdir holds no sweep, or none of its groups is finished.
    """
    store = Store(storage.place(folder))
    grid = grid_of(store)
    store.look()
    experiment = grid.experiment
    found = [
        group
        for size in experiment.sizes
        for base in experiment.bases
        for seed in range(experiment.seeds)
        if (group := _group(grid, store, size, base, seed))
    ]
    if not found:
        raise UserError(
            f"{store.workdir}: no base of this sweep is there with all its experts; "
            "`merging sweep` with its config goes on."
        )
    config = json.loads((store.workdir / workdir.CONFIG).read_text())["config"]
    return found, {"name": config["suite"], **config.get("data", {})}


def _group(grid: Grid, store: Store, size: str, base: str, seed: int) -> Group | None:
    experiment = grid.experiment
    start = grid.base(size, base)
    most = max(experiment.experts_merged)
    categories = experiment.order(seed)[:most]
    experts = {c: grid.expert(size, base, c, seed) for c in categories}
    if not all(map(store.finished, (start, *experts.values()))):
        return None

    def uri(step: Step) -> str:
        return restoring.uri(experiment, store, step)

    merges = {}
    for method in experiment.methods if experiment.keep_merges else ():
        for count in experiment.counts(method):
            step = grid.merge(size, base, method, count, seed)
            if store.finished(step):
                merges[f"{method}_K{count}"] = uri(step)
    multitask = ""
    if experiment.multitask and store.finished(step := grid.multitask(size, base)):
        best = store.path(step) / "best"
        multitask = str(best) if best.exists() else uri(step)
    return Group(
        *(size, base, seed),
        models.parameter_count(experiment.decoder(size, base)),
        uri(start),
        {category: uri(step) for category, step in experts.items()},
        merges,
        multitask,
    )
