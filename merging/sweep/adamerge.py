"""The job of `merging adamerge`: λ of each expert and layer, from unlabelled prompts.

AdaMerging (Yang et al. 2024, arXiv 2310.02575): θ = θ₀ + Σ λ[layer, expert] Δ, with the
λ for which the merged model's predictions on held-in prompts have the least entropy, by
Adam. Base and experts lie on the mesh throughout; each step merges, predicts, and goes
back through both. Prompts are a suite's validation split; their targets are not read.

WORKDIR/config.json      whose run this is; driver.json, who works on it
WORKDIR/data/            the suite's rows
WORKDIR/state.json       the steps so far: to go on from
WORKDIR/adamerge.json    the table of λ, entropies before and after; when it is done
WORKDIR/adamerged.py     the merge, a config of `merging merge`
WORKDIR/merged/          its checkpoint, with a manifest, unless not asked for
"""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from merging import checkpoints, evaluation, tasks
from merging.evaluation.job import open_model, require_own_tokens
from merging.evaluation.requests import dataset_names
from merging.merge import merge_checkpoints
from merging.merge.inputs import Inputs, expert_names, open_inputs
from merging.models import hf
from merging.runtime import config as configs
from merging.runtime import config_keys, processes, sharding, storage, text, workdir
from merging.runtime.errors import UserError
from merging.runtime.revision import git_revision
from merging.sweep import coefficients, entropy, entropy_steps, merge_config
from merging.sweep.coefficients import Groups
from merging.sweep.entropy import Prompts
from merging.sweep.entropy_steps import Models, State
from merging.sweep.space import Recipe

DONE, STATE, MERGE, MERGED = "adamerge.json", "state.json", "adamerged.py", "merged"
_KEYS = {
    "base": str,
    "experts": tuple,
    "suite": ConfigDict,
    "tokenizer": "",
    "datasets": (),
    "count": 0,
    "coefficients": "layer",
    "start": 0.3,
    "bounds": (0.0, 1.0),
    "learning_rate": 1e-3,
    "steps": 500,
    "batch_size": 16,
    "seed": 0,
    "dtype": "",
    "save_every": 50,
    "merge": True,
    "mesh": ConfigDict(dict(data=-1, fsdp=1, tensor=1)),
}
# Do not change the coefficients, but for rounding.
_HOW = ("mesh", "save_every", "merge")


class _Asked(NamedTuple):
    """A run, checked; no weight is read yet.

    Attributes:
      config: with its defaults.
      inputs: the models.
      experts: {name: checkpoint}, in the order of the coefficients.
      model: what they are.
      groups: of leaves, with coefficients of their own.
      suite: with the prompts.
      datasets: whose.
      identity: all that the coefficients depend on.
    """

    config: ConfigDict
    inputs: Inputs
    experts: dict[str, str]
    model: hf.Model
    groups: Groups
    suite: tasks.Suite
    datasets: tuple[str, ...]
    identity: ConfigDict


def adamerge(config: Any, folder: Path | str) -> Path:
    """Learn a merge's coefficients, and merge (see configs/adamerge).

    Called by every process of a job. Stopped at any moment and called again with the
    same config and folder, on any number of devices and processes, it goes on.

    Args:
      config: such as `merging.runtime.config.load("adamerge/layers")`.
      folder: the workdir.

    Returns:
      The merge's config.

    Raises:
      UserError: models or prompts that can't be used, another config's workdir, or one
        in which another process works.
      Preempted: it was asked to stop; the steps so far are kept.
    """
    folder = Path(storage.supported_path(folder, "--workdir")).absolute()
    config = config_keys.completed(
        config,
        _KEYS,
        "merging adamerge",
        "adamerge/layers",
        remote=("base", "experts"),
    )
    processes.initialize(folder / "logs")
    asked = _read(config)
    digest = configs.config_hash(asked.identity)
    processes.broadcast(lambda: workdir.require_own(folder, digest, "adamerge"))
    mesh = sharding.make_mesh(config.mesh.to_dict())
    sharding.rows_here(mesh, config.batch_size)  # refused before anything is read
    with contextlib.ExitStack() as held:
        only = workdir.only_driver(folder)
        processes.broadcast(lambda: held.enter_context(only))
        processes.broadcast(lambda: workdir.require_own(folder, digest, "adamerge"))
        if processes.broadcast((folder / DONE).exists):
            if processes.is_first():
                print(f"Nothing to do, it is learned: {folder / MERGE}")
            if config.merge:
                _merge(asked, _learned(asked, folder), folder)
                if processes.is_first():
                    print(f"Merged: {folder / MERGED}")
            return folder / MERGE
        found = _prompts(asked, folder)
        record = asked.identity.to_dict()
        processes.broadcast(lambda: workdir.claim(folder, record, digest, "adamerge"))
        _learn(asked, found, folder, mesh)
    return folder / MERGE


def _read(config: ConfigDict) -> _Asked:
    """Return what a config asks for; reads headers and no weight."""
    _check(config)
    experts = expert_names(config.experts)
    inputs = open_inputs(config.base, experts)
    model = hf.open_model(inputs.first.uri)
    groups = coefficients.groups(model, config.coefficients)
    known = open_model(inputs.first.uri, config.tokenizer)
    settings = config.suite.to_dict()
    name = settings.pop("name", "")
    if "only" in settings:  # what is not asked for need not be there
        settings["only"] = settings["only"] or tuple(config.datasets)
    suite = tasks.suite(name, **settings | {"tokenizer": known.tokenizer})
    require_own_tokens(suite, known)
    held_in = tuple(d.name for d in suite.datasets if d.split == "held_in")
    datasets = tuple(dataset_names(suite, config.datasets or held_in))
    identity = ConfigDict({k: v for k, v in config.items() if k not in _HOW})
    identity.inputs = tuple(processes.broadcast(lambda: _contents(inputs)))
    identity.suite_digest = suite.digest
    return _Asked(config, inputs, experts, model, groups, suite, datasets, identity)


def _check(config: ConfigDict) -> None:
    """Refuse numbers that can't be: all of them."""
    faults = [] if config.base else ["no base: --config.base=BASE"]
    faults += [] if config.experts else ["no experts: --config.experts=EXPERT1,EXPERT2"]
    for key in ("steps", "batch_size", "save_every"):
        if config[key] < 1:
            faults.append(f"{key} = {config[key]} must be 1 or more")
    if config.count < 0:
        faults.append(f"count = {config.count} must be 0 (all) or more")
    if not config.learning_rate > 0:
        faults.append(f"learning_rate = {config.learning_rate} must be above 0")
    bounds = config.bounds
    if len(bounds) != 2 or not bounds[0] < bounds[1]:
        faults.append(f"bounds = {bounds} must be (least, most)")
    elif not bounds[0] <= config.start <= bounds[1]:
        faults.append(f"start = {config.start} must lie within bounds = {bounds}")
    if faults:
        raise UserError("this cannot be run:\n" + "\n".join(faults))


def _contents(inputs: Inputs) -> list[str]:
    # A name may hold a dot, which no key of a config does.
    return [
        f"{name} {storage.digest(checkpoints.content(source))}"
        for name, source in zip(inputs.names, inputs.sources, strict=True)
    ]


def _prompts(asked: _Asked, folder: Path) -> dict[str, Prompts]:
    """Return each dataset's prompts, and tell what is left out."""
    model = asked.model.config
    requests = evaluation.requests(
        asked.suite,
        "validation",
        datasets=asked.datasets,
        count=asked.config.count or None,
        context=model.max_length,
        vocab_size=model.vocab_size,
        cache_dir=folder / "data",
    )
    found, left_out = entropy.prompts(requests)
    if left_out and processes.is_first():
        named = ", ".join(f"{n} of {name}" for name, n in left_out.items())
        print(f"left out, as their choices stand behind several prompts: {named}")
    return found


def _learn(asked: _Asked, found: dict[str, Prompts], folder: Path, mesh: Mesh) -> None:
    """Do the steps that are left, and publish."""
    config = asked.config
    dtype = config.dtype or None
    decoder, base = hf.read(
        hf.with_weights_of(asked.model, asked.inputs.base), dtype=dtype, mesh=mesh
    )
    experts = tuple(
        hf.read(
            hf.with_weights_of(asked.model, asked.inputs.experts[name]),
            dtype=dtype,
            mesh=mesh,
        )[1]
        for name in asked.experts
    )
    how = config.learning_rate, tuple(config.bounds), mesh
    functions = entropy.functions(decoder, asked.groups, *how)
    models = Models(functions, base, experts, found, mesh)
    shape = len(asked.groups.names), len(experts)
    start = np.full(shape, config.start, np.float32)
    now = entropy_steps.take(
        models,
        entropy_steps.restored(folder / STATE, State(*functions.start(start), ())),
        folder / STATE,
        steps=config.steps,
        seed=config.seed,
        batch_size=config.batch_size,
        save_every=config.save_every,
    )
    values = sharding.to_host(now.values)
    of = {"before": start, "after": values}
    size = config.batch_size
    measured = {k: entropy_steps.entropies(models, v, size) for k, v in of.items()}
    _publish(asked, folder, values, measured, now.entropies)


def _publish(
    asked: _Asked,
    folder: Path,
    values: np.ndarray,
    measured: Mapping[str, Mapping[str, float]],
    steps: tuple[float, ...],
) -> None:
    """Write the table and the merge's config, merge, and tell."""
    recipe = coefficients.recipe(asked.groups, values, asked.config.start)
    names = list(asked.experts)
    mean = {key: float(np.mean([*of.values()])) for key, of in measured.items()}
    table = {
        group: dict(zip(names, map(text.shortest, row), strict=True))
        for group, row in zip(asked.groups.names, values, strict=True)
    }
    record = {
        "coefficients": table,
        "entropy": measured | {"mean": mean},
        "entropy_of_steps": steps,
        "git_revision": git_revision(),
    }

    def write() -> bool:
        merge_config.write(
            folder / MERGE,
            recipe,
            title="The merge that `merging adamerge` learned.",
            words=(
                f"{len(steps)} steps brought the entropy of its predictions on "
                f"{len(asked.datasets)} datasets'\nvalidation prompts from "
                f"{mean['before']:.4f} to {mean['after']:.4f} nats."
            ),
            base=asked.config.base,
            experts=asked.experts,
            output=folder / MERGED,
        )
        return True

    processes.broadcast(write)
    if asked.config.merge:
        _merge(asked, recipe, folder)
    processes.broadcast(lambda: bool(storage.write_json(folder / DONE, record)))
    if processes.is_first():
        print(_told(table, measured, mean))
        merged = f"; merged: {folder / MERGED}" if asked.config.merge else ""
        print(f"Learned: {folder / MERGE}{merged}")


def _learned(asked: _Asked, folder: Path) -> Recipe:
    """Return the merge of a finished run, from its record."""

    def coefficients_of() -> list[list[float]]:
        table = json.loads((folder / DONE).read_text())["coefficients"]
        return [[table[g][e] for e in asked.experts] for g in asked.groups.names]

    values = np.array(processes.broadcast(coefficients_of), np.float32)
    return coefficients.recipe(asked.groups, values, asked.config.start)


def _merge(asked: _Asked, recipe: Recipe, folder: Path) -> None:
    """Write the merged checkpoint, if it is not there."""
    merge_checkpoints(
        asked.config.base,
        asked.experts,
        recipe.method,
        folder / MERGED,
        leaf_rules=recipe.rules,
    )


def _told(table: Mapping, measured: Mapping, mean: Mapping[str, float]) -> str:
    """Return the entropies and each expert's coefficients as tables for a person."""
    rows = [("entropy on validation prompts, nats", "before", "after")]
    rows += [
        (name, f"{measured['before'][name]:.4f}", f"{measured['after'][name]:.4f}")
        for name in measured["before"]
    ]
    rows.append(("mean", f"{mean['before']:.4f}", f"{mean['after']:.4f}"))
    experts = next(iter(table.values()))
    spread = [("coefficients of", "least", "mean", "most")]
    for name in experts:
        of = [row[name] for row in table.values()]
        numbers = (min(of), sum(of) / len(of), max(of))
        spread.append((name, *(f"{number:.3f}" for number in numbers)))
    return "\n".join(
        [text.table(rows, right=(1, 2)), "", text.table(spread, right=(1, 2, 3))]
    )
