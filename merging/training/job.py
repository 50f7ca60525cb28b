"""One training from its config to a checkpoint: `merging train`.

WORKDIR/config.json      whose training this is
WORKDIR/data/            the suite's examples, written once
WORKDIR/training/        steps to go on from, until it is done
WORKDIR/losses.jsonl     a line for each step and each validation
WORKDIR/checkpoint/      the last parameters; Orbax, with its config.json
WORKDIR/best/            with validation: those of the lowest validation loss
WORKDIR/train.json       what came out; there when it is done
WORKDIR/logs/            what processes other than 0 print
"""

import copy
import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from merging import checkpoints, models, tasks
from merging.models import hf as families
from merging.runtime import config as configs
from merging.runtime import processes, sharding, storage, tree, workdir
from merging.runtime.progress import Progress as Shown
from merging.runtime.revision import git_revision
from merging.training.loop import train
from merging.training.progress import Progress
from merging.training.recipe import Recipe, Trained

_HOW = ("mesh",)  # does not change what is computed, so a run may go on with another


def run(config: Any, folder: Path | str) -> Path:
    """Train what the config says (see configs/train/pretrain.py).

    Called by every process of a job. Stopped at any moment and called again with the
    same config and folder, on any number of devices and processes, it goes on.

    Returns:
      The checkpoint's path.

    Raises:
      UserError: what can't be trained, or another config's folder.
      TrainingDiverged: the loss or the parameters are no longer finite.
      Preempted: it was asked to stop; the step is saved.
    """
    folder = Path(folder).absolute()
    processes.initialize(folder / "logs")
    values = config.to_dict()
    recipe = Recipe(**values["recipe"])
    processes.broadcast(lambda: _claim(config, folder))
    if processes.broadcast((folder / "train.json").exists):
        if processes.is_first():
            print(f"Nothing to do, it is trained: {folder / 'checkpoint'}")
        return folder / "checkpoint"
    begin = time.monotonic()
    suite = tasks.suite(values["suite"], **values["data"])
    mesh = sharding.make_mesh(values["mesh"])
    sharding.rows_here(mesh, recipe.batch_size)  # refused before anything is read
    decoder, params = _start(values, suite, mesh)
    splits = ("train", "validation") if recipe.validate_every else ("train",)
    length = values["length"] or suite.max_length
    examples = {
        split: tasks.store(suite, values["what"], split, length, folder / "data")
        for split in splits
    }
    with Shown(recipe.steps, f"train {values['what']}") as shown:
        trained = train(
            decoder,
            params,
            examples["train"],
            recipe,
            workdir=folder / "training",
            validation=examples.get("validation"),
            mesh=mesh,
            report=_Told(folder / "losses.jsonl", shown),
        )
    files = families.files_of_trained(
        decoder,
        values["start"],
        tokenizer=suite.tokenizer.files,
        eos_id=suite.tokenizer.eos_id,
    )
    _publish(folder, trained, files, recipe)
    processes.broadcast(
        lambda: _record(folder, trained, decoder, time.monotonic() - begin)
    )
    if processes.is_first():
        loss = float(np.mean(trained.losses[-recipe.log_every :]))
        print(
            f"Trained: {folder / 'checkpoint'} ({trained.steps} steps, loss {loss:.4f})"
        )
    return folder / "checkpoint"


class _Told:
    """Shows how far a training is, and keeps its losses; process 0 does the writing."""

    def __init__(self, path: Path, shown: Shown):
        self._path, self._shown = path, shown
        self._told: Progress | None = None

    def __call__(self, now: Progress) -> None:
        """Take note of the steps since the last call."""
        if self._told is None:
            self._shown.skip(now.step)  # by earlier runs, or while this one compiled
        else:
            self._shown.advance(now.step - self._told.step)
        note = f"loss {now.losses[-1]:.4f}"
        if len(now.validations):
            note += f", validation {now.validations[-1, 1]:.4f}"
        self._shown.note(note)
        if processes.is_first():
            # An earlier run may have told of steps that it could not save.
            mode = "w" if self._told is None else "a"
            with open(self._path, mode) as file:
                file.writelines(_lines(now, self._told))
        self._told = now


def _lines(now: Progress, before: Progress | None) -> list[str]:
    """Return the lines of the steps and validations that are new."""
    first = before.step if before else 0
    validated = len(before.validations) if before else 0
    records = [
        (step + 1, 0, {"step": step + 1, "loss": _short(now.losses[step])})
        for step in range(first, now.step)
    ]
    records += [
        (step, 1, {"step": int(step), "validation_loss": _short(value)})
        for step, value in now.validations[validated:]
    ]
    records.sort(key=lambda record: record[:2])
    return [json.dumps(record) + "\n" for *_, record in records]


def _short(value: Any) -> float:
    """Return a float32 as the shortest number that is read as the same."""
    return float(str(np.float32(value)))


def _claim(config: Any, folder: Path) -> None:
    identity = copy.deepcopy(config)
    with identity.unlocked():
        for name in _HOW:
            del identity[name]
    digest = configs.config_hash(identity)
    workdir.claim(folder, identity.to_dict(), digest, "training")


def _start(
    values: dict[str, Any], suite: tasks.Suite, mesh: Mesh
) -> tuple[models.DecoderConfig, models.Params]:
    """Return the decoder and its first parameters, on the mesh."""
    start, dtype = values["start"], values["param_dtype"] or None
    described = start and families.CONFIG in checkpoints.companions(start)
    if described:
        decoder, params = families.load(start, dtype=dtype, mesh=mesh)
    else:
        vocabulary = len(suite.tokenizer)
        decoder = models.size(values["family"], values["size"], vocab_size=vocabulary)
        if dtype:
            decoder = dataclasses.replace(decoder, param_dtype=dtype)
        if start:
            params = checkpoints.restore(start, _like(decoder, mesh))
        else:
            params = models.init(decoder, values["seed"], mesh)
    return dataclasses.replace(decoder, bos_id=suite.tokenizer.bos_id), params


def _like(decoder: models.DecoderConfig, mesh: Mesh) -> tree.Tree:
    abstract = models.abstract(decoder)
    where = sharding.shardings(abstract, models.rules(decoder), mesh)
    return jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
        abstract,
        where,
    )


def _publish(
    folder: Path, trained: Trained, files: dict[str, bytes], recipe: Recipe
) -> None:
    """Write the checkpoints, beside them the model's config and tokenizer."""
    kept = {"checkpoint": trained.params}
    if recipe.validate_every:
        kept["best"] = trained.best
    for name, params in kept.items():
        checkpoints.save(folder / name, params)
        if processes.is_first():
            for file, content in files.items():
                (folder / name / file).write_bytes(content)


def _record(
    folder: Path, trained: Trained, decoder: models.DecoderConfig, seconds: float
) -> None:
    record = {
        "steps": int(trained.steps),
        "loss": _short(trained.losses[-1]),
        "stopped_early": bool(trained.stopped_early),
        "best_step": int(trained.best_step),
        "parameters": models.parameter_count(decoder),
        "decoder": dataclasses.asdict(decoder),
        "processes": processes.count(),
        "wall_seconds_of_the_last_start": round(seconds, 1),
        "git_revision": git_revision(),
    }
    storage.write_json(folder / "train.json", record)
    shutil.rmtree(folder / "training", ignore_errors=True)
