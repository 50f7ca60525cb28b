"""Merge checkpoints that are larger than memory, with the bits of a merge in memory.

Blocks are read, merged and written one after the other; what a method must know of
the whole model is found in a pass before. `merge_checkpoints` is the door.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from merging import checkpoints, methods
from merging.merge import card, job, manifest, mergekit, rules
from merging.merge.inputs import Inputs, expert_names, open_inputs
from merging.merge.manifest import verify
from merging.methods import Method
from merging.runtime import config_keys, memory, processes, storage, tree
from merging.runtime.errors import UserError, nearest

__all__ = ["merge_checkpoints", "prepare", "repeat", "run", "verify"]

DTYPES = ("bfloat16", "float16", "float32", "float64")
_KEYS = {
    "base": "",
    "experts": (),
    "output": "",
    "method": ConfigDict(),
    "rules": (),
    "merge_yaml": "",
    "seed": 0,
    "memory_budget": "1GB",
    "dtype": "",
    "format": "",
    "shard_size": "5GB",
    "auxiliary_files": "",
}
# Without a YAML that says these.
_NEEDED = {"experts": tuple, "method": ConfigDict}


def merge_checkpoints(
    base: str | os.PathLike | None,
    experts: Sequence[str | os.PathLike] | Mapping[str, str | os.PathLike],
    method: Method | str,
    output: str | os.PathLike,
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
      output: the folder to make. It appears when it is complete; one that this very
        merge has made is left as it is.
      method_file: a Python file of yours that registers methods; see
        `methods.register`. Then `method` may be "", if it registers one only.
      leaf_rules: ``"REGEX => METHOD(…)"`` or ``"REGEX => base"``; the first that a
        leaf's path matches goes before `method` (see `merging.merge.rules`).
      seed: of random masks. memory_budget: of all blocks in memory, such as ``"1GB"``.
      A method that sees whole
        matrices takes one of each model, should they need more.
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
    """
    settings = {
        "base": None if base is None else os.fspath(base),
        "experts": _as_text(experts),
        "method": method,
        "method_file": method_file,
        "leaf_rules": leaf_rules,
        "seed": seed,
        "dtype": dtype,
        "format": format,
        "shard_size": shard_size,
        "auxiliary_files": auxiliary_files,
    }
    prepared, extra = _prepare(os.fspath(output), memory_budget, **settings)
    if not _is_done(prepared):
        job.run(prepared, extra)
    return Path(output)


def _as_text(experts: Any) -> Any:
    if isinstance(experts, str):
        raise UserError("experts must be several folders, not one text.")
    if isinstance(experts, Mapping):
        return {name: os.fspath(folder) for name, folder in experts.items()}
    return [os.fspath(folder) for folder in experts]


def _is_done(prepared: job.Job) -> bool:
    """Return whether the output is there and this very merge's.

    Raises:
      UserError: something else is there, or it cannot be.
    """

    def look() -> bool:
        inputs = prepared.inputs
        if manifest.is_of(prepared.output, prepared.settings, inputs):
            return True
        given = [source.uri for source in inputs.sources]
        checkpoints.require_free_output(prepared.output, given)
        return False

    return processes.broadcast(look)


def repeat(
    path: str | Path,
    output: str,
    *,
    inputs: Mapping[str, str] | None = None,
    memory_budget: str | int = "1GB",
) -> Path:
    """Do the merge of a manifest again, into another folder: the same bytes.

    Args:
      path: the manifest.
      output: the folder to make.
      inputs: where models are now that are not where the manifest has them, by the
        experts' names; the base is ``base``.
      memory_budget: of all blocks in memory; changes no bit.

    Raises:
      UserError: an input has changed since, or the method was a Python value; the
        result has other bytes than the manifest records, and is not published.
    """
    record = manifest.read(path)
    settings = manifest.in_place(record["settings"], Path(path).parent, inputs or {})
    if settings["method"].startswith("Method("):
        raise UserError(f"{path}: its method was a Python value; repeat it in Python.")
    if own := settings["method_file"]:
        if methods.load_file(own["path"])[0] != own["sha256"]:
            raise UserError(f"{own['path']} is not what it was when this was merged.")
        settings["method_file"] = own["path"]
    prepared, extra = _prepare(output, memory_budget, **settings)
    opened = prepared.inputs
    found = manifest.describe_inputs(opened.names, opened.sources, output)
    if len(found) != len(record["inputs"]):
        raise UserError(f"{path} does not list its own inputs; it was changed by hand.")
    changed = [
        new["name"]
        for old, new in zip(record["inputs"], found, strict=True)
        if old["files"] != new["files"]
    ]
    if changed:
        raise UserError(f"these inputs are not what they were: {', '.join(changed)}.")
    given = [source.uri for source in opened.sources]
    processes.broadcast(lambda: checkpoints.require_free_output(output, given))
    expected = {p: leaf["sha256"] for p, leaf in record["leaves"].items()}
    job.run(prepared, extra, expected)
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
        done = _is_done(prepared)
        if processes.is_first():
            summary = job.summary(prepared, prepared.partition())
            print(f"It is merged already. {summary}" if done else summary)
        return
    arguments = _arguments(config)
    there = os.path.lexists(arguments["output"])
    path = merge_checkpoints(**arguments)
    if processes.is_first():
        done = "Nothing to do, it is merged" if there else "Merged"
        print(f"{done}: {path} (`merging verify {path}` checks it)")


def prepare(config: Any) -> job.Job:
    """Return what a config asks for, checked and ready to be cut into blocks.

    Reads headers, and no weight; makes nothing. An output need not be named yet.

    Raises:
      UserError: as `merge_checkpoints`.
    """
    arguments = _arguments(config)
    output = arguments.pop("output") or f"merged.{os.getpid()}"
    return _prepare(output, arguments.pop("memory_budget"), **arguments)[0]


def _arguments(config: ConfigDict) -> dict[str, Any]:
    """Return `merge_checkpoints`'s arguments from a config.

    Raises:
      UserError: it is no config of a merge.
    """
    keys = _KEYS if config.get("merge_yaml") else _KEYS | _NEEDED
    values = config_keys.completed(
        config, keys, "merging merge", "merge/ties", remote=("base", "experts")
    ).to_dict()
    method = values.pop("method")
    name, file = method.pop("name", ""), method.pop("file", "")
    settings = ", ".join(f"{k}={v!r}" for k, v in method.items())
    arguments = {
        "base": values.pop("base") or None,
        "experts": values.pop("experts"),
        "method": f"{name}({settings})" if method else name,
        "method_file": file or None,
        "leaf_rules": values.pop("rules"),
        "dtype": values.pop("dtype") or None,
    }
    yaml = values.pop("merge_yaml")
    if yaml:
        given = [k for k in ("base", "experts", "leaf_rules") if arguments[k]]
        if given:
            raise UserError(
                f"merge_yaml says what {', '.join(given)} are; leave those out."
            )
        asked = mergekit.read(yaml)
        arguments |= asked._asdict() | {"dtype": arguments["dtype"] or asked.dtype}
    return {
        **arguments,
        "output": values.pop("output"),
        "seed": values.pop("seed"),
        **{key: value or None for key, value in values.items()},
    }


def _prepare(
    output: str, memory_budget: str | int, **settings: Any
) -> tuple[job.Job, dict[str, bytes]]:
    """Check everything that can be checked before a weight is read.

    Args:
      output: the folder to make.
      memory_budget: of all blocks in memory.
      settings: the rest of `merge_checkpoints`'s arguments, for the manifest.
    """
    base, dtype, format = (settings[k] for k in ("base", "dtype", "format"))
    experts, method = settings["experts"], settings["method"]
    if not output:
        raise UserError("name the folder to make (output).")
    if dtype is not None and dtype not in DTYPES:
        raise nearest("dtype", dtype, DTYPES)
    if dtype == "float64" and not jax.config.jax_enable_x64:
        raise UserError("dtype float64: JAX computes in it with JAX_ENABLE_X64=1 only.")
    if format is not None and format not in checkpoints.FORMATS:
        raise nearest("format", format, checkpoints.FORMATS)
    named = dict(experts) if isinstance(experts, Mapping) else expert_names(experts)
    _warn_of_twins(named)
    method, own = _own_method(method, settings["method_file"])
    inputs = open_inputs(base, named)
    recipe = _recipe(inputs, method, settings["leaf_rules"])
    target = format or inputs.first.format
    if target == "safetensors":
        checkpoints.require_tensor_names(inputs.first_leaves)
    settings |= {
        "experts": named,
        "method": method if isinstance(method, str) else repr(method),
        "method_file": own,
        "leaf_rules": list(settings["leaf_rules"]),
        "format": target,
    }
    prepared = job.Job(
        inputs=inputs,
        recipe=recipe,
        output=output,
        format=target,
        seed=settings["seed"],
        budget=storage.parse_size(memory_budget),
        dtype=None if dtype is None else np.dtype(_dtype(dtype)),
        shard_bytes=storage.parse_size(settings["shard_size"], "shard_size"),
        settings=manifest.as_recorded(settings, output),
    )
    files = card.auxiliary_files(
        inputs, settings["auxiliary_files"], target, dtype, settings
    )
    return prepared, files


def _own_method(
    method: Method | str, file: str | None
) -> tuple[Method | str, dict[str, str] | None]:
    """Return the method, and the user's file that registers it, for the manifest."""
    if not isinstance(method, (str, Method)):
        raise UserError(
            "method must be a value such as merging.methods.ties(), or text such as "
            f"'ties()', not {method!r}."
        )
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
    leaves = inputs.first_leaves
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


def _dtype(name: str) -> Any:
    import jax.numpy as jnp

    return getattr(jnp, name)
