"""Merge checkpoints that are larger than memory, with the bits of a merge in memory.

Blocks are read, merged and written one after the other; what a method must know of
the whole model is found in a pass before. `merge_checkpoints` is the door, and
`merge_yaml` that of mergekit's YAML files.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from merging import checkpoints, methods
from merging.merge import card, job, manifest, mergekit, rules
from merging.merge.inputs import Inputs, expert_names, open_inputs
from merging.merge.manifest import verify
from merging.methods import Method
from merging.runtime import memory, processes, storage, tree
from merging.runtime.errors import UserError, nearest

__all__ = [
    "merge_checkpoints",
    "merge_yaml",
    "prepare",
    "repeat",
    "run",
    "verify",
]

DTYPES = ("bfloat16", "float16", "float32", "float64")


def merge_checkpoints(
    base: str | None,
    experts: Sequence[str] | Mapping[str, str],
    method: Method | str,
    output: str,
    *,
    method_file: str | None = None,
    leaf_rules: Sequence[str] = (),
    seed: int = 0,
    memory_budget: str | int = "1GB",
    dtype: str | None = None,
    format: str | None = None,
    shard_size: str | int = "5GB",
    auxiliary_files: str | None = None,
) -> Path:
    """Merge checkpoints on disk into a new one: θ = θ₀ + λ · combine(θᵢ − θ₀).

    Stopped at any moment and called again with the same arguments, it goes on and
    gives the same bytes, as it does for any number of devices and processes; and they
    are those of `merging.merge` in memory.

    Args:
      base: folder of θ₀; None if the method needs none.
      experts: folders of θᵢ, or {name: folder}. Random masks depend on the names,
        which are the folders' own; ``NAME=FOLDER`` gives another.
      method: such as ``methods.ties(density=0.2)`` or ``"ties(density=0.2)"``.
      output: the folder to make. It appears when it is complete.
      method_file: a Python file of yours that registers methods; see
        `methods.register`. Then `method` may be "", if it registers one only.
      leaf_rules: ``"REGEX => METHOD(…)"`` or ``"REGEX => base"``; the first that a
        leaf's path matches goes before `method` (see `merging.merge.rules`).
      seed: of random masks. memory_budget: of all blocks in memory, such as ``"1GB"``.
      A method that sees whole
        matrices takes one of each model, should they need more.
      dtype: of the merged leaves; the first model's if None.
      format: ``safetensors`` or ``orbax``; the first model's if None.
      shard_size: the most in one safetensors file.
      auxiliary_files: whose tokenizer and config to copy: ``base``, an expert's name
        or a folder; the base's if None.

    Returns:
      The output's path.

    Raises:
      UserError: the models can't be merged, the output exists, the disk is full; each
        says what is wrong and lists every offender.
    """
    settings = {
        "base": base,
        "experts": experts,
        "method": method,
        "method_file": method_file,
        "leaf_rules": leaf_rules,
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
) -> Path:
    """Merge as a mergekit YAML says, under the rules of mergekit 0.1.5.

    Args:
      path: of the YAML. Models are folders on disk.
      output: and all that follow, as `merge_checkpoints` has them.

    Returns:
      The output's path.

    Raises:
      UserError: the file asks for what is not followed here (everything is listed), or
        as `merge_checkpoints`.
    """
    settings = {
        "seed": seed,
        "format": format,
        "shard_size": shard_size,
        "auxiliary_files": auxiliary_files,
    }
    text = mergekit.read(path)
    return _merge(output, memory_budget, merge_yaml=text, **settings)


def repeat(path: str | Path, output: str, **changes: Any) -> Path:
    """Do the merge of a manifest again, into another folder: the same bytes.

    Args:
      path: the manifest.
      output: the folder to make.
      changes: of what changes no bit: `memory_budget`.

    Raises:
      UserError: an input has changed since, or the method was a Python value.
    """
    record = manifest.read(path)
    settings = dict(record["settings"])
    if settings["method"].startswith("Method("):
        raise UserError(f"{path}: its method was a Python value; repeat it in Python.")
    if own := settings["method_file"]:
        if methods.load_file(own["path"])[0] != own["sha256"]:
            raise UserError(f"{own['path']} is not what it was when this was merged.")
        settings["method_file"] = own["path"]
    budget = changes.get("memory_budget", "1GB")
    prepared, extra = _prepare(str(output), budget, **settings)
    inputs = prepared.inputs
    found = manifest.describe_inputs(inputs.names, inputs.sources)
    if len(found) != len(record["inputs"]):
        raise UserError(f"{path} does not list its own inputs; it was changed by hand.")
    changed = [
        f"{old['uri']}"
        for old, new in zip(record["inputs"], found, strict=True)
        if old["files"] != new["files"]
    ]
    if changed:
        raise UserError(f"these inputs are not what they were: {', '.join(changed)}.")
    job.run(prepared, extra)
    return Path(output)


def run(config: Any, *, dry_run: bool = False) -> None:
    """Do what a config says (see configs/merge/ties.py).

    Raises:
      UserError: as `merge_checkpoints`.
    """
    memory.settle_process()
    processes.initialize()
    if dry_run:
        prepared = prepare(config)
        if processes.is_first():
            print(job.summary(prepared, prepared.partition()))
        return
    path = _merge(**_arguments(config.to_dict()))
    if processes.is_first():
        print(f"Merged: {path} (`merging verify {path}` checks it)")


def prepare(config: Any) -> job.Job:
    """Return what a config asks for, checked and ready to be cut into blocks.

    Reads headers, and no weight; makes nothing. An output need not be named yet.

    Raises:
      UserError: as `merge_checkpoints`.
    """
    arguments = _arguments(config.to_dict())
    output = arguments.pop("output") or f"merged.{os.getpid()}"
    return _prepare(output, arguments.pop("memory_budget"), **arguments)[0]


def _arguments(values: dict[str, Any]) -> dict[str, Any]:
    """Return `_merge`'s arguments from a config's values."""
    yaml = values.pop("merge_yaml", None)
    if yaml is not None:
        if not yaml:
            raise UserError("name the mergekit YAML (merge_yaml).")
        arguments: dict[str, Any] = {"merge_yaml": mergekit.read(yaml)}
    else:
        method = values.pop("method")
        name, file = method.pop("name"), method.pop("file", "")
        settings = ", ".join(f"{k}={v!r}" for k, v in method.items())
        arguments = {
            "base": values.pop("base") or None,
            "experts": values.pop("experts"),
            "method": f"{name}({settings})" if method else name,
            "method_file": file or None,
            "leaf_rules": values.pop("rules"),
            "dtype": values.pop("dtype") or None,
        }
    return {
        **arguments,
        "output": values.pop("output"),
        "seed": values.pop("seed"),
        **{key: value or None for key, value in values.items()},
    }


def _merge(output: str, memory_budget: str | int, **settings: Any) -> Path:
    prepared, extra = _prepare(output, memory_budget, **settings)
    job.run(prepared, extra)
    return Path(output)


class _Asked(NamedTuple):
    """The models of a merge, and what is done with them.

    Attributes:
      inputs: the models.
      recipe: {path of each float leaf: its method}, in the order of `inputs.experts`.
      settings: for the manifest.
      dtype: of the merged leaves; None is the first model's.
      document: the mergekit YAML, if there is one.
      layers: of the first model, one for each of the output's; None is all of them.
    """

    inputs: Inputs
    recipe: Mapping[str, Method | None]
    settings: dict[str, Any]
    dtype: str | None
    document: mergekit.Document | None = None
    layers: tuple[int, ...] | None = None


def _prepare(
    output: str, memory_budget: str | int, **settings: Any
) -> tuple[job.Job, dict[str, bytes]]:
    """Check everything that can be checked before a weight is read.

    Args:
      output: the folder to make.
      memory_budget: of all blocks in memory.
      settings: the rest of `merge_checkpoints`'s or `merge_yaml`'s arguments, for the
        manifest.
    """
    format = settings["format"]
    if not output:
        raise UserError("name the folder to make (output).")
    if format is not None and format not in checkpoints.FORMATS:
        raise nearest("format", format, checkpoints.FORMATS)
    by_yaml = settings.get("merge_yaml") is not None
    asked = _asked_by_yaml(output, settings) if by_yaml else _asked(output, settings)
    dtype = asked.settings["dtype"]
    if dtype == "float64" and not jax.config.jax_enable_x64:
        raise UserError("dtype float64: JAX computes in it with JAX_ENABLE_X64=1 only.")
    target = format or asked.inputs.sources[0].format
    recorded = asked.settings | {"format": target}
    prepared = job.Job(
        inputs=asked.inputs,
        recipe=asked.recipe,
        output=output,
        format=target,
        seed=settings["seed"],
        budget=storage.parse_size(memory_budget),
        dtype=None if asked.dtype is None else _dtype(asked.dtype),
        shard_bytes=storage.parse_size(settings["shard_size"], "shard_size"),
        settings=recorded,
    )
    return prepared, _files(asked, target, recorded)


def _asked(output: str, settings: dict[str, Any]) -> _Asked:
    """Open what `merge_checkpoints`'s arguments name."""
    base, dtype = settings["base"], settings["dtype"]
    experts, method = settings["experts"], settings["method"]
    if dtype is not None and dtype not in DTYPES:
        raise nearest("dtype", dtype, DTYPES)
    if isinstance(experts, str):
        raise UserError("experts must be several folders, not one text.")
    named = dict(experts) if isinstance(experts, Mapping) else expert_names(experts)
    checkpoints.require_free_output(output, [*filter(None, [base]), *named.values()])
    _warn_of_twins(named)
    method, own = _own_method(method, settings["method_file"])
    inputs = open_inputs(base, named)
    recipe = _recipe(inputs, method, settings["leaf_rules"])
    recorded = settings | {
        "experts": named,
        "method": method if isinstance(method, str) else repr(method),
        "method_file": own,
        "leaf_rules": list(settings["leaf_rules"]),
        "merge_yaml": None,
    }
    return _Asked(inputs, recipe, recorded, dtype)


def _asked_by_yaml(output: str, settings: dict[str, Any]) -> _Asked:
    """Open what a mergekit YAML names."""
    text = settings["merge_yaml"]
    document = mergekit.parse(text)
    checkpoints.require_free_output(output, document.models)
    models = {name: checkpoints.open_checkpoint(name) for name in document.models}
    cast = None if document.dtype is None else _dtype(document.dtype)
    merge = mergekit.plan(document, models, cast)
    experts = {name: source.uri for name, source in merge.inputs.experts.items()}
    recorded = settings | {
        "base": document.base,
        "experts": experts,
        "method": document.method,
        "method_file": None,
        "leaf_rules": [],
        "dtype": document.out_dtype or document.dtype,
    }
    return _Asked(
        merge.inputs,
        merge.recipe,
        recorded,
        document.out_dtype,
        document,
        merge.layers,
    )


def _files(asked: _Asked, target: str, settings: dict[str, Any]) -> dict[str, bytes]:
    """Return the small files of the output by name."""
    chosen, document = settings["auxiliary_files"], asked.document
    donor = None
    if document is not None and chosen in (None, "base"):
        donor = document.models[0]
    files = card.auxiliary_files(
        asked.inputs, chosen, target, settings["dtype"], settings, donor
    )
    if asked.layers is not None:
        files = card.with_layers(files, asked.layers)
    if document is not None and document.chat_template:
        files = card.with_chat_template(files, document.chat_template, document.models)
    return files


def _own_method(
    method: Method | str, file: str | None
) -> tuple[Method | str, dict[str, str] | None]:
    """Return the method, and the user's file that registers it, for the manifest."""
    if not file:
        return method, None
    digest, names = methods.load_file(file)
    if not method:
        if len(names) > 1:
            raise UserError(f"{file} registers {', '.join(names)}: name one of them.")
        method = names[0]
    return method, {"path": file, "sha256": digest}


def _recipe(
    inputs: Inputs, method: Method | str, leaf_rules: Sequence[str]
) -> dict[str, Method | None]:
    """Return the method of each float leaf, its numbers in the experts' order."""
    leaves = inputs.abstracts[0]
    floats = {p: a for p, a in leaves.items() if tree.dtype_class(a) == "float"}
    chosen = rules.recipe(floats, method, leaf_rules)
    if inputs.base is None and any(m is None or m.needs_base for m in chosen.values()):
        names = sorted({m.name if m else "base" for m in chosen.values()})
        raise UserError(f"{', '.join(names)}: this needs the base; name it (base).")
    ordered = {
        m: None if m is None else m.reordered(inputs.order)
        for m in dict.fromkeys(chosen.values())
    }
    return {path: ordered[m] for path, m in chosen.items()}


def _warn_of_twins(experts: Mapping[str, str]) -> None:
    uris = list(experts.values())
    twins = sorted({uri for uri in uris if uris.count(uri) > 1})
    if twins:
        text = f"merged more than once, as different experts: {', '.join(twins)}"
        warnings.warn(text, stacklevel=3)


def _dtype(name: str) -> np.dtype:
    import jax.numpy as jnp

    return np.dtype(getattr(jnp, name))
