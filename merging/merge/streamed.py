"""Merge checkpoints that are larger than memory, with the bits of a merge in memory.

Blocks are read, merged and written one after the other; what a method must know of
the whole model is found in a pass before. `merge_checkpoints` is the door, and
`merge_yaml` that of mergekit's YAML files.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from merging import checkpoints, methods
from merging.merge import (
    along_run,
    card,
    job,
    manifest,
    mergekit,
    preparation,
    spaces,
)
from merging.merge.manifest import verify
from merging.methods import Method
from merging.runtime import config_keys, memory, processes, storage
from merging.runtime.errors import UserError
from merging.runtime.storage import Folder

__all__ = [
    "merge_checkpoints",
    "merge_yaml",
    "prepare",
    "repeat",
    "run",
    "verify",
]

# What both kinds of config have, and what each kind has beside it.
_KEYS = {
    "output": "",
    "seed": 0,
    "memory_budget": "1GB",
    "format": "",
    "shard_size": "5GB",
    "auxiliary_files": "",
}
_OWN = {
    "base": "",
    "experts": tuple,
    "method": ConfigDict,
    "statistics": (),
    "rules": (),
    "space": spaces.WEIGHTS,
    "dtype": "",
    "schedule": "",
}
_YAML = {"merge_yaml": str}


def merge_checkpoints(
    base: str | os.PathLike | None,
    experts: Sequence[str | os.PathLike] | Mapping[str, str | os.PathLike],
    method: Method | str,
    output: str | os.PathLike,
    *,
    schedule: str | None = None,
    method_file: str | None = None,
    statistics: Sequence[str] | Mapping[str, str | os.PathLike] = (),
    leaf_rules: Sequence[str] = (),
    space: str = spaces.WEIGHTS,
    seed: int = 0,
    memory_budget: str | int = "1GB",
    dtype: str | None = None,
    format: str | None = None,
    shard_size: str | int = "5GB",
    auxiliary_files: str | None = None,
) -> Folder:
    """Merge checkpoints on disk into a new one: θ = θ₀ + λ · combine(θᵢ − θ₀).

    Stopped at any moment and called again with the same arguments, it goes on and
    gives the same bytes, as it does for any number of devices and processes; and they
    are those of `merging.merge` in memory.

    Args:
      base: folder of θ₀; None if the method needs none.
      experts: folders of θᵢ, or {name: folder}. Random masks depend on the names,
        which are the folders' own; ``NAME=FOLDER`` gives another. ``RUN@last:10`` is
        several, steps of a run in their order (see `merging.checkpoints.runs`).
      method: such as ``methods.ties(density=0.2)`` or ``"ties(density=0.2)"``.
      output: the folder to make, here or in `gs://`. It appears when it is complete
        (there, its manifest does); one that this very merge has made is left as it is.
      schedule: the weights of experts along a run, such as ``"ema"`` (see
        `methods.run_weights`).
      method_file: a Python file of yours that registers methods; see
        `methods.register`. Then `method` may be "", if it registers one only.
      statistics: {expert's name: folder}, or ``NAME=FOLDER``, of what `merging
        collect` gathered, for a method that wants some (`methods.fisher`).
      leaf_rules: ``"REGEX => METHOD(…)"`` or ``"REGEX => base"``; the first that a
        leaf's path matches goes before `method` (see `merging.merge.rules`).
      space: ``weights`` merges models, and adapters on their base; ``factors``,
        ``core_space`` and ``knots`` merge LoRA adapters into an adapter.
      seed: of random masks.
      memory_budget: of all blocks in memory, such as ``"1GB"``. A method that sees
        whole matrices takes one of each model, should they need more.
      dtype: of the merged leaves; the base's if None, or the first expert's where there
        is no base.
      format: ``safetensors`` or ``orbax``; likewise.
      shard_size: the most in one safetensors file.
      auxiliary_files: whose tokenizer and config to copy: ``base``, an expert's name
        or a folder; the base's, or else the first expert's, if None.

    Returns:
      The output's path.

    Raises:
      UserError: the models can't be merged, the output exists, the disk is full; each
        says what is wrong and lists every offender.

    >>> import jax.numpy as jnp, merging
    >>> for name, value in (("base", 0.0), ("qa", 1.0), ("nli", 3.0)):
    ...     merging.checkpoints.save(name, {"w": jnp.full(2, value)})
    >>> method = merging.methods.task_arithmetic(scale=0.5)
    >>> path = merging.merge_checkpoints("base", ["qa", "nli"], method, "merged")
    >>> print(merging.checkpoints.restore(path)["w"])
    [2. 2.]
    """
    settings = {
        "base": None if base is None else os.fspath(base),
        **_scheduled(_as_text(experts), method, schedule, method_file),
        "method_file": method_file,
        "statistics": _as_text(statistics),
        "leaf_rules": leaf_rules,
        "space": space,
        "seed": seed,
        "dtype": dtype,
        "format": format,
        "shard_size": shard_size,
        "auxiliary_files": auxiliary_files,
    }
    return _merge(output, memory_budget, **settings)


def merge_yaml(
    path: str | Path,
    output: str,
    *,
    seed: int = 0,
    memory_budget: str | int = "1GB",
    format: str | None = None,
    shard_size: str | int = "5GB",
    auxiliary_files: str | None = None,
) -> Folder:
    """Merge as a mergekit YAML says, under the rules of mergekit 0.1.5.

    Args:
      path: of the YAML. Models are folders on disk.
      output: and all that follow, as `merge_checkpoints` has them.

    Returns:
      The output's path.

    Raises:
      UserError: the file asks for what is not followed here (everything is listed), or
        as `merge_checkpoints`.

    >>> import jax.numpy as jnp, merging
    >>> from pathlib import Path
    >>> merging.checkpoints.save("qa", {"w": jnp.full(2, 1.0)})
    >>> merging.checkpoints.save("nli", {"w": jnp.full(2, 3.0)})
    >>> text = "{merge_method: linear, models: [{model: qa}, {model: nli}], "
    >>> written = Path("merge.yml").write_text(text + "parameters: {weight: 1.0}}")
    >>> path = merging.merge.merge_yaml("merge.yml", "merged")
    >>> print(merging.checkpoints.restore(path)["w"])
    [2. 2.]
    """
    settings = {
        "space": spaces.WEIGHTS,
        "seed": seed,
        "format": format,
        "shard_size": shard_size,
        "auxiliary_files": auxiliary_files,
    }
    text = mergekit.read(path)
    return _merge(output, memory_budget, merge_yaml=text, **settings)


def _merge(output: str | Folder, memory_budget: str | int, **settings: Any) -> Folder:
    prepared, extra = preparation.prepare(os.fspath(output), memory_budget, **settings)
    if _is_done(prepared):
        processes.broadcast(lambda: checkpoints.clear(prepared.output))
    else:
        job.run(prepared, extra)
        if prepared.format == "safetensors" and card.CONFIG not in extra:
            text = f"{output} has no config.json: there was none to copy"
            warnings.warn(f"{text} (auxiliary_files).", stacklevel=3)
    return storage.place(output)


def _scheduled(
    experts: Any, method: Method | str, schedule: str | None, file: str | None
) -> dict[str, Any]:
    """Return these settings, with the weights that the schedule gives."""
    if schedule:
        if file:  # its methods are to be known
            methods.load_file(file)
        experts, method = along_run.scheduled(experts, method, schedule)
    return {"experts": experts, "method": method, "schedule": schedule}


def _as_text(experts: Any) -> Any:
    if isinstance(experts, str):
        raise UserError("experts and statistics must be several folders, not one text.")
    if isinstance(experts, Mapping):
        return {name: os.fspath(folder) for name, folder in experts.items()}
    return [os.fspath(folder) for folder in experts]


def _is_done(prepared: job.Job) -> bool:
    """Return whether the output is there, as this very command makes it.

    Raises:
      UserError: something else is there, or it cannot be.
    """

    def look() -> bool:
        inputs = prepared.inputs
        if manifest.is_of(prepared.output, prepared.settings, inputs):
            return True
        given = [source.uri for source in inputs.everything.values()]
        checkpoints.require_free_output(prepared.output, given, manifest.NAME)
        return False

    return processes.broadcast(look)


def repeat(
    path: str | Folder,
    output: str | os.PathLike,
    *,
    inputs: Mapping[str, str] | None = None,
    method_file: str | None = None,
    memory_budget: str | int = "1GB",
) -> Folder:
    """Do the merge of a manifest again, into another folder: the same bytes.

    Args:
      path: the manifest.
      output: the folder to make.
      inputs: where models are now that are not where the manifest has them, by the
        experts' names; the base is ``base``.
      method_file: the file of methods that was merged with, if one was. It is a
        program: it runs if it is named here, and is the one that was merged with.
      memory_budget: of all blocks in memory; changes no bit.

    Raises:
      UserError: an input has changed since, or the method was a Python value; the
        result has other bytes than the manifest records, and is not published.
    """
    record, output = manifest.read(path), os.fspath(output)
    folder = storage.place(path).parent
    settings = manifest.in_place(record["settings"], folder, inputs or {})
    if settings["method"].startswith("Method("):
        raise UserError(f"{path}: its method was a Python value; repeat it in Python.")
    own = settings["method_file"]
    if bool(own) != bool(method_file):
        raise UserError(
            f"{path}: its method is of a Python file, which would be run: look at it, "
            f"and name it (--method_file {own['path']})."
            if own
            else f"{path}: it was merged without a file of methods; leave "
            f"{method_file} out."
        )
    if own:
        methods.load_file(method_file, own["sha256"])
        settings["method_file"] = method_file
    prepared, extra = preparation.prepare(output, memory_budget, **settings)
    opened = prepared.inputs
    found = manifest.describe_inputs(opened.everything, output)
    if len(found) != len(record["inputs"]):
        raise UserError(f"{path} does not list its own inputs; it was changed by hand.")
    changed = [
        new["name"]
        for old, new in zip(record["inputs"], found, strict=True)
        if old["files"] != new["files"]
    ]
    if changed:
        raise UserError(f"these inputs are not what they were: {', '.join(changed)}.")
    if storage.is_remote(output) and _is_done(prepared):
        # Killed when all was there, before what lay beside it was removed.
        there = manifest.read(storage.place(output) / manifest.NAME)
        if _digests(there) == _digests(record):
            processes.broadcast(lambda: checkpoints.clear(output))
            return storage.place(output)
    given = [source.uri for source in opened.everything.values()]
    processes.broadcast(lambda: checkpoints.require_free_output(output, given))
    job.run(prepared, extra, _digests(record))
    return storage.place(output)


def _digests(record: Mapping[str, Any]) -> dict[str, str]:
    """Return {leaf: SHA-256} of a manifest."""
    return {path: leaf["sha256"] for path, leaf in record["leaves"].items()}


def run(config: Any, *, dry_run: bool = False) -> None:
    """Do what a config says (see configs/merge/ties.py).

    Raises:
      UserError: as `merge_checkpoints`.
    """
    memory.settle_process()
    processes.initialize()
    if dry_run:
        prepared = prepare(config)
        done = _is_done(prepared)
        if processes.is_first():
            summary = job.summary(prepared, prepared.partition())
            if prepared.settings["schedule"]:
                summary = f"{along_run.table(prepared.settings)}\n{summary}"
            print(f"It is merged already. {summary}" if done else summary)
        return
    arguments = _arguments(config)
    there = _is_there(arguments["output"])
    path = _merge(**arguments)
    if processes.is_first():
        done = "Nothing to do, it is merged" if there else "Merged"
        print(f"{done}: {path} (`merging verify {path}` checks it)")


def _is_there(output: str) -> bool:
    """Return whether an output is there; in an object store, the last of it."""
    if storage.is_remote(output):
        return (storage.place(output, "output") / manifest.NAME).exists()
    return os.path.lexists(output)


def prepare(config: Any) -> job.Job:
    """Return what a config asks for, checked and ready to be cut into blocks.

    Reads headers, and no weight; makes nothing. An output need not be named yet.

    Raises:
      UserError: as `merge_checkpoints`.
    """
    arguments = _arguments(config)
    output = arguments.pop("output") or f"merged.{os.getpid()}"
    return preparation.prepare(output, arguments.pop("memory_budget"), **arguments)[0]


def _arguments(config: ConfigDict) -> dict[str, Any]:
    """Return `_merge`'s arguments from a config.

    Raises:
      UserError: it is no config of a merge.
    """
    by_yaml = "merge_yaml" in config
    values = config_keys.completed(
        config,
        _KEYS | (_YAML if by_yaml else _OWN),
        "merging merge",
        "merge/mergekit" if by_yaml else "merge/ties",
        remote=() if by_yaml else ("base", "experts", "statistics"),
        kept=("output",),
    ).to_dict()
    if by_yaml:
        if not (yaml := values.pop("merge_yaml")):
            raise UserError("name the mergekit YAML (merge_yaml).")
        arguments: dict[str, Any] = {
            "merge_yaml": mergekit.read(yaml),
            "space": spaces.WEIGHTS,
        }
    else:
        method = values.pop("method")
        name, file = method.pop("name", ""), method.pop("file", "")
        settings = ", ".join(f"{k}={v!r}" for k, v in method.items())
        text = f"{name}({settings})" if method else name
        schedule = values.pop("schedule") or None
        arguments = {
            "base": values.pop("base") or None,
            **_scheduled(values.pop("experts"), text, schedule, file or None),
            "method_file": file or None,
            "statistics": values.pop("statistics"),
            "leaf_rules": values.pop("rules"),
            "space": values.pop("space"),
            "dtype": values.pop("dtype") or None,
        }
    return {
        **arguments,
        "output": values.pop("output"),
        "seed": values.pop("seed"),
        **{key: value or None for key, value in values.items()},
    }
