"""One training, from what is to be trained to a checkpoint: `merging train`.

`fit` is the job: a model, its examples and hyperparameters, trained on a mesh into a
folder, resumably. The command calls it with a config's, and a sweep with its steps'.

FOLDER/training/         steps to go on from, until it is done
FOLDER/checkpoint/       the last parameters; Orbax, with its config.json and tokenizer
FOLDER/best/             with validation: those of the lowest validation loss

and beside them `merging train` keeps, in its WORKDIR,

WORKDIR/config.json      whose training this is
WORKDIR/driver.json      who works on it; see `runtime.workdir.only_driver`
WORKDIR/data/            the suite's examples, written once
WORKDIR/losses.jsonl     a line for each step and each validation
WORKDIR/tensorboard/     the same for TensorBoard, or whatever `logger` names
WORKDIR/train.json       what came out; there when it is done
WORKDIR/logs/            what processes other than 0 print
"""

import contextlib
import copy
import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from merging import checkpoints, models, tasks
from merging.models import hf as families
from merging.runtime import config as configs
from merging.runtime import (
    config_keys,
    loggers,
    processes,
    sharding,
    storage,
    text,
    tree,
    workdir,
)
from merging.runtime.errors import UserError
from merging.runtime.progress import Progress
from merging.runtime.revision import git_revision
from merging.runtime.storage import Folder
from merging.training.batches import Examples, Source
from merging.training.hyperparameters import Hyperparameters, Trained
from merging.training.loop import train
from merging.training.run_state import RunState
from merging.training.told import Told

# What does not change what is computed, so that a run may go on with another.
_HOW = ("mesh", "logger")
_PRETRAIN, _FRESH = "pretrain", "fresh"
_KEYS = {
    "suite": str,
    "data": ConfigDict(),
    "what": str,
    "length": 0,
    "start": "",
    "family": "",
    "size": "",
    "seed": 0,
    "param_dtype": "",
    "mesh": ConfigDict(dict(data=-1, fsdp=1, tensor=1)),
    "logger": "tensorboard",
    "hyperparameters": ConfigDict,
}


class Training(NamedTuple):
    """What is to be trained.

    Attributes:
      decoder: the model.
      params: where it starts.
      examples: what it learns.
      hyperparameters: how.
      validation: held-back examples, for those that validate.
      files: to lay beside each checkpoint: its config.json, its tokenizer.
    """

    decoder: models.DecoderConfig
    params: models.Params
    examples: Examples | Source
    hyperparameters: Hyperparameters
    validation: Examples | Source | None = None
    files: Mapping[str, bytes] = {}


def fit(
    what: Training,
    folder: Folder,
    *,
    mesh: Mesh | None = None,
    report: Callable[[RunState], object] | None = None,
    note: Callable[[str], object] | None = None,
    dtype: str = "",
) -> Trained:
    """Train a model into a folder; called by every process of a job.

    Stopped at any moment and called again with the same arguments, on any number of
    devices and processes, it goes on.

    Args:
      what: to train.
      folder: gets `checkpoint`, and `best` where there is validation.
      mesh: the devices; None for the default one.
      report: called with the state of the run after every ``log_every`` steps.
      note: told which batch of a validation comes.
      dtype: of the parameters that come out; that of those trained by default.

    Raises:
      UserError: impossible examples or batch; a folder that holds another training.
      TrainingDiverged: the loss or the parameters are no longer finite.
      Preempted: the job was asked to stop; the step is saved.
    """
    trained = train(
        what.decoder,
        what.params,
        what.examples,
        what.hyperparameters,
        workdir=folder / "training",
        validation=what.validation,
        mesh=mesh,
        report=report,
        note=note,
    )
    if dtype:
        last = best = tree.cast(trained.params, dtype)
        if trained.best is not trained.params:
            best = tree.cast(trained.best, dtype)
        trained = dataclasses.replace(trained, params=last, best=best)
    kept = {"checkpoint": trained.params}
    if what.hyperparameters.validate_every:
        kept["best"] = trained.best
    for name, params in kept.items():
        checkpoints.save(folder / name, params)
        if processes.is_first():
            for file, content in what.files.items():
                storage.write_bytes(folder / name / file, content)
    return trained


def run(config: Any, folder: Folder | str) -> Folder:
    """Train what the config says (see configs/train/pretrain.py).

    Called by every process of a job. Stopped at any moment and called again with the
    same config and folder, on any number of devices and processes, it goes on.

    Args:
      config: such as `merging.runtime.config.load("configs/train/pretrain.py")`.
      folder: the workdir, of this machine or `gs://`.

    Returns:
      The checkpoint's path.

    Raises:
      UserError: what can't be trained, another config's folder, or one in which
        another process trains.
      TrainingDiverged: the loss or the parameters are no longer finite.
      Preempted: it was asked to stop; the step is saved.

    >>> import merging
    >>> from merging.runtime import config
    >>> small = {"size": "1x", "data.documents": "64", "data.validation_examples": "8",
    ...          "hyperparameters.steps": "2", "hyperparameters.warmup_steps": "1"}
    >>> pretrain = config.load("configs/train/pretrain.py", small)
    >>> merging.train(pretrain, "base")  # doctest: +ELLIPSIS
    Trained: ...
    """
    folder = storage.absolute(storage.place(folder, "--workdir"))
    config = config_keys.completed(
        config, _KEYS, "merging train", "train/pretrain", remote=("start",)
    )
    processes.initialize(folder / "logs")
    loggers.require_known(config.logger)
    values = config.to_dict()
    hparams = config_keys.section(
        Hyperparameters, values["hyperparameters"], "hyperparameters"
    )
    identity = _identity(config)
    digest = configs.config_hash(identity)
    processes.broadcast(lambda: workdir.require_own(folder, digest, "training"))
    if _is_trained(folder):
        return folder / "checkpoint"
    suite = tasks.suite(values["suite"], **_in_own_tokens(values))
    mesh = sharding.make_mesh(values["mesh"])
    sharding.rows_here(mesh, hparams.batch_size)  # refused before anything is read
    _check(values, suite)
    begin = time.monotonic()
    with contextlib.ExitStack() as held:
        only = workdir.only_driver(folder)
        processes.broadcast(lambda: held.enter_context(only))
        # Again: before the lock, another driver may have made it its own.
        processes.broadcast(lambda: workdir.require_own(folder, digest, "training"))
        if not _is_trained(folder):
            what = _training(values, suite, hparams, mesh, folder / "data")
            _train(what, folder, mesh, config, identity, begin)
    return folder / "checkpoint"


def _is_trained(folder: Folder) -> bool:
    """Return whether a workdir's training is done, and say so."""
    if not processes.broadcast((folder / "train.json").exists):
        return False
    if processes.is_first():
        print(f"Nothing to do, it is trained: {folder / 'checkpoint'}")
    return True


def _train(
    what: Training,
    folder: Folder,
    mesh: Mesh,
    config: ConfigDict,
    identity: ConfigDict,
    begin: float,
) -> None:
    """Train, and tell how it went."""
    hparams = what.hyperparameters
    digest = configs.config_hash(identity)
    # Only now: what was refused so far must not keep the workdir.
    processes.broadcast(
        lambda: workdir.claim(folder, identity.to_dict(), digest, "training")
    )
    name = config.logger if processes.is_first() else loggers.NONE
    with (
        Progress(hparams.steps, f"train {config.what}") as shown,
        loggers.opened(name, folder, config.to_dict()) as logger,
    ):
        told = Told(folder / "losses.jsonl", logger, shown)
        trained = fit(what, folder, mesh=mesh, report=told, note=shown.note)
        told.settle()
    seconds = time.monotonic() - begin
    processes.broadcast(lambda: _record(folder, trained, what.decoder, seconds))
    if processes.is_first():
        loss = float(np.mean(trained.losses[-hparams.log_every :]))
        print(
            f"Trained: {folder / 'checkpoint'} ({trained.steps} steps, loss {loss:.4f})"
        )


def _in_own_tokens(values: dict[str, Any]) -> dict[str, Any]:
    """Return the data's settings, with the start's own tokenizer if none is named."""
    data, start = values["data"], _start_of(values)
    files = checkpoints.auxiliary_files(start) if start else {}
    if not data.get("tokenizer") and tasks.holds_tokenizer(files):
        return data | {"tokenizer": start}
    return data


def _check(values: dict[str, Any], suite: tasks.Suite) -> None:
    """Refuse what can't be, before anything is read."""
    what, start = values["what"], values["start"]
    suite.mixture(what)
    if values["length"] < 0:
        raise UserError(
            f"length = {values['length']} must be 0 (the suite's own) or more."
        )
    if what != _PRETRAIN and not start:
        raise UserError(
            f"{what!r} is learned by a model that is there already: name its "
            f"checkpoint, --config.start=DIR; or --config.start={_FRESH} for fresh "
            "parameters."
        )


def _training(
    values: dict[str, Any],
    suite: tasks.Suite,
    hparams: Hyperparameters,
    mesh: Mesh,
    data: Folder,
) -> Training:
    """Return what a config's values name, parameters on the mesh."""
    decoder, params = _start(values, suite, mesh)
    splits = ("train", "validation") if hparams.validate_every else ("train",)
    length = values["length"] or suite.max_length
    examples = {
        split: tasks.store(suite, values["what"], split, length, data)
        for split in splits
    }
    files = families.files_of_trained(
        decoder,
        _start_of(values),
        tokenizer=suite.tokenizer.files,
        eos_id=suite.tokenizer.eos_id,
    )
    validation = examples.get("validation")
    return Training(decoder, params, examples["train"], hparams, validation, files)


def _identity(config: ConfigDict) -> ConfigDict:
    """Return what a config's results depend on."""
    identity = copy.deepcopy(config)
    with identity.unlocked():
        for name in _HOW:
            del identity[name]
        if start := _start_of(config):
            identity.start_content = processes.broadcast(lambda: _content(start))
    return identity


def _content(start: str) -> str:
    """Return a hash of what a training starts from."""
    source = checkpoints.open_checkpoint(start)
    described = checkpoints.read_auxiliary_files(start).get(families.CONFIG, b"")
    # An object in a bucket would be read whole for its bytes.
    remote = source.uri.startswith(storage.REMOTE)
    files = checkpoints.stamps([source]) if remote else checkpoints.content(source)
    return storage.digest(described, files)


def _start_of(values: Mapping[str, Any] | ConfigDict) -> str:
    return "" if values["start"] == _FRESH else values["start"]


def _start(
    values: dict[str, Any], suite: tasks.Suite, mesh: Mesh
) -> tuple[models.DecoderConfig, models.Params]:
    """Return the decoder and its first parameters, on the mesh."""
    start, dtype = _start_of(values), values["param_dtype"] or None
    described = start and families.CONFIG in checkpoints.auxiliary_files(start)
    # An Orbax folder may be that of a family's decoder, and needs no description.
    if start and not described and checkpoints.open_checkpoint(start).format != "orbax":
        raise UserError(
            f"start {start} holds no {families.CONFIG}, which says what model it is; "
            "put that of the same model there."
        )
    if described:
        decoder, params = families.load(start, dtype=dtype, mesh=mesh)
    else:
        vocabulary = len(suite.tokenizer)
        decoder = models.size(values["family"], values["size"], vocab_size=vocabulary)
        if dtype:
            decoder = dataclasses.replace(decoder, param_dtype=dtype)
        if start:
            source = checkpoints.open_checkpoint(start)
            if source.format != "orbax":
                raise UserError(
                    f"{start} holds no {families.CONFIG}, which says what model it is."
                )
            params = source.restore(models.abstract(decoder, mesh))
        else:
            params = models.init(decoder, values["seed"], mesh)
    return dataclasses.replace(decoder, bos_id=suite.tokenizer.bos_id), params


def _record(
    folder: Folder, trained: Trained, decoder: models.DecoderConfig, seconds: float
) -> None:
    record = {
        "steps": int(trained.steps),
        "loss": text.shortest(trained.losses[-1]),
        "stopped_early": bool(trained.stopped_early),
        "best_step": int(trained.best_step),
        "parameters": models.parameter_count(decoder),
        "decoder": dataclasses.asdict(decoder),
        "processes": processes.count(),
        "wall_seconds_of_the_last_start": round(seconds, 1),
        "git_revision": git_revision(),
    }
    storage.write_json(folder / "train.json", record)
    storage.remove(folder / "training")
