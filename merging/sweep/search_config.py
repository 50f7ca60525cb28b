"""What a search is asked for: its config, checked whole before any work."""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from merging import checkpoints, methods, tasks
from merging.evaluation import bootstrap
from merging.evaluation.job import mesh_of
from merging.merge import rules, statistics
from merging.merge.inputs import expert_names
from merging.merge.rules import Spec
from merging.methods import Statistics
from merging.runtime import config_keys, processes, sharding, storage, tree
from merging.runtime.errors import UserError, nearest
from merging.sweep import on_ray, reading, trials
from merging.sweep import space as searched
from merging.sweep.resident import Resident
from merging.sweep.scorers import Settings, Where
from merging.sweep.space import Space

# Do not change what a trial finds: with more trials, a search goes on.
_HOW = ("runner", "workers", "resources", "mesh", "merge", "trials")
_KEYS = {
    "base": "",
    "experts": tuple,
    "statistics": (),
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
    "batch_size": 0,
    "sampler": "tpe",
    "trials": int,
    "batch": 1,
    "points": 5,
    "search_seed": 0,
    "scales": (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0),
    "seed": 0,
    "bootstrap": {"resamples": 1000, "level": 0.95, "seed": 0},
    "runner": "",
    "workers": 1,
    "mesh": ConfigDict(dict(data=-1, fsdp=1, tensor=1)),
    "resources": ("CPU=1",),
    "merge": True,
}
_NAMED = re.compile(r"([A-Za-z][\w-]*)=(.+)")


@dataclasses.dataclass(frozen=True)
class Asked:
    """A search, checked and ready.

    Attributes:
      config: with its defaults.
      settings: of the scorers.
      resident: the models, of which no weight is read yet.
      spec: the method, with the numbers that the config gives.
      space: what is searched.
      compiled: the parameters of it that are compiled in: see `Space.compiled`.
      where: the runner.
    """

    config: ConfigDict
    settings: Settings
    resident: Resident
    spec: Spec
    space: Space
    compiled: list[str]
    where: Where


def read(config: Any, folder: Path) -> Asked:
    """Return what a config asks for; reads headers and no weight.

    Called by every process of the job, if the runner is inline: they join here.

    Raises:
      UserError: what cannot be searched, or done there.
    """
    config = config_keys.completed(
        config,
        _KEYS,
        "merging search",
        "search/weights",
        remote=("base", "experts", "statistics"),
    )
    _check(config)
    where = _where(config, folder)
    mesh = None
    if where.runner == "inline":
        mesh = mesh_of(config.mesh.to_dict())
        sharding.rows_here(mesh, config.batch_size)
    spec, file = _method(config.method.to_dict())
    experts = expert_names(config.experts)
    method = methods.get(spec.name)
    if method.needs_base and not config.base:
        raise UserError(f"{spec.name}: this needs the base; name it (base).")
    told = expert_names(config.statistics)
    statistics.require([method], experts, told)
    told = {method.statistics: told} if method.statistics else {}
    resident = Resident(config.base or None, experts, mesh, told)
    space = searched.space(
        spec,
        config.space.to_dict(),
        list(experts),
        per_expert=config.per_expert,
        per_group=config.per_group,
        groups=_groups(config, resident),
    )
    if config.sampler == "grid":
        searched.grid_points(space, config.points)  # or too many
    # Patterns that match no leaf, or a method of another number of experts, say.
    leaves = resident.inputs.first_leaves
    floats = [p for p in leaves if tree.dtype_class(leaves[p]) == "float"]
    chosen = rules.recipe(floats, *space.recipe(space.at(0.5)))
    for one in filter(None, chosen.values()):
        one.reordered(range(len(experts)))
    statistics.dtypes(resident.inputs.statistics, leaves, chosen)  # or they don't fit
    settings = _settings(config, experts, told, file, folder).with_datasets(resident)
    if where.runner == "ray":
        on_ray.connect(where.resources)
    return Asked(config, settings, resident, spec, space, space.compiled, where)


def _where(config: ConfigDict, folder: Path) -> Where:
    """Return the runner; if it is inline, having joined this job's other processes."""
    runner = config.runner or ("inline" if config.workers == 1 else "local")
    resources = reading.resources(config.resources)
    number, count = processes.process_id()
    if runner == "inline":
        processes.initialize(folder / "logs")
        return Where(runner, 1, resources)
    if count > 1:
        raise UserError(
            f"this is process {number} of {count}, and one drives a search of the "
            f"runner {runner}: let them do each trial together "
            "(--config.runner=inline), or start it once."
        )
    if runner == "local":
        cores = len(os.sched_getaffinity(0))
        return Where(runner, config.workers or cores, resources)
    return Where(runner, config.batch, resources)


def _settings(
    config: ConfigDict,
    experts: dict[str, str],
    told: dict[Statistics, dict[str, str]],
    file: str | None,
    folder: Path,
) -> Settings:
    suite = config.suite.to_dict()
    return Settings(
        base=config.base or None,
        experts=experts,
        statistics=told,
        method_file=file,
        suite=suite.pop("name", ""),
        suite_settings=suite,
        tokenizer=config.tokenizer,
        datasets=tuple(config.datasets),
        counts={"validation": config.count, "test": config.test_count},
        batch_size=config.batch_size,
        mesh=config.mesh.to_dict(),
        seed=config.seed,
        bootstrap=bootstrap.Options(**config.bootstrap),
        merge=config.merge,
        folder=folder,
    )


def _check(config: ConfigDict) -> None:
    faults = [] if config.experts else ["no experts: --config.experts=EXPERT1,EXPERT2"]
    for key, least in (
        *(("trials", 1), ("batch", 1), ("points", 2), ("batch_size", 0)),
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
    if config.runner not in ("", *reading.RUNNERS):
        raise nearest("runner", config.runner, reading.RUNNERS)
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


def identity(asked: Asked) -> ConfigDict:
    """Return all that the trials depend on."""
    import optuna

    found = ConfigDict(asked.config.to_dict())
    for key in _HOW:
        del found[key]
    inputs = asked.resident.inputs
    # A name may hold a dot, which no key of a config does.
    found.inputs = tuple(
        processes.broadcast(
            lambda: [
                f"{name} {storage.digest(checkpoints.content(source))}"
                for name, source in inputs.everything.items()
            ]
        )
    )
    found.suite_digest = tasks.suite(
        asked.settings.suite, **asked.settings.suite_arguments(asked.resident)
    ).digest
    if file := asked.settings.method_file:
        found.method_digest = methods.load_file(file)[0]
    found.optuna = optuna.__version__
    return found
