"""`extract`: read two checkpoints matrix by matrix, and write an adapter."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from merging import checkpoints
from merging.checkpoints import Source, adapter_config, adapter_writer
from merging.checkpoints.adapter_writer import Written
from merging.merge import manifest
from merging.merge.extraction import report as reporting
from merging.merge.extraction.fit import Fit, fit
from merging.merge.extraction.parts import Parts, clear_parts, parts_of
from merging.merge.extraction.plan import WEIGHT, Plan
from merging.merge.extraction.plan import plan as make_plan
from merging.merge.inputs import open_inputs
from merging.merge.rules import is_embedding, layer_leaf
from merging.runtime import (
    config_keys,
    foreign_json,
    memory,
    preemption,
    processes,
    storage,
    tree,
)
from merging.runtime.errors import UserError, listed, nearest
from merging.runtime.progress import Progress

DTYPES = ("bfloat16", "float16", "float32")
_PART = 2**22
_KEYS = {
    "base": str,
    "model": str,
    "output": str,
    "rank": 16,
    "energy": 0.0,
    "leaves": "",
    "whole": "",
    "dtype": "float32",
}


def extract(
    base: str,
    model: str,
    output: str,
    *,
    rank: int = 16,
    energy: float = 0.0,
    leaves: str = "",
    whole: str = "",
    dtype: str = "float32",
) -> Path:
    """Make a LoRA adapter, as PEFT reads it, of what a model adds to its base.

    Each matrix of the task vector becomes its truncated SVD. Two matrices and their
    decomposition are in memory at a time. Stopped at any moment and called again with
    the same arguments, it goes on. `extraction.json` beside the adapter has the error
    of each matrix.

    Args:
      base: folder of θ₀, with the names of leaves that transformers has.
      model: folder of θ.
      output: the folder to make; one that this very extraction has made is left.
      rank: the most of any matrix; 0 sets no limit.
      energy: the share of a matrix's Σσ² to keep, in (0, 1), whatever rank that takes
        under the limit; 0 takes the rank.
      leaves: a regular expression of the matrices; those of the layers if "".
      whole: of leaves to store as the model has them (PEFT's `modules_to_save`).
      dtype: of the factors.

    Returns:
      The output's path.

    Raises:
      UserError: models that differ in leaves, hold NaN or Inf, or are changed
        meanwhile; settings that fit no leaf; the output exists, or another program
        makes it.
    """
    if not base or not model or not output:
        raise UserError("name the base, the model and the folder to make (output).")
    storage.supported_path(output, "output")
    _check_numbers(rank, energy)
    if dtype not in DTYPES:
        raise nearest("dtype", dtype, DTYPES)
    inputs = open_inputs(base, {"the model": model})
    start, other = inputs.base, inputs.experts["the model"]
    plan = make_plan(start, leaves, whole)
    settings = {"rank": rank, "energy": energy, "leaves": leaves, "whole": whole}
    files = processes.broadcast(lambda: _described(start, other))
    record = {**settings, "dtype": dtype, "inputs": files}
    before = processes.broadcast(lambda: checkpoints.stamps([start, other]))
    given = [start.uri, other.uri]
    sources = [start, other]
    if processes.broadcast(lambda: _is_done(output, given, record, sources)):
        return Path(output)
    stored = np.dtype(getattr(jnp, dtype))
    with parts_of(output, record, before) as parts:
        _fit_all(plan, start, other, rank, energy, stored, parts)
        fits = processes.broadcast(lambda: _read_numbers(plan, start, stored, parts))
        left = processes.broadcast(lambda: _norms(plan.rest, start, other))
        written = {"written": [when for _, _, when in before]}
        report = {**record, **written, **reporting.report(plan, fits, left)}
        _write(plan, start, other, fits, stored, parts, output, report, before)
        processes.broadcast(parts.remove)
    return Path(output)


def run(config: Any) -> None:
    """Do what a config says (see configs/extract/lora.py).

    Raises:
      UserError: as `extract`.
    """
    values = config_keys.completed(
        config, _KEYS, "merging extract", "extract/lora", remote=("base", "model")
    ).to_dict()
    memory.settle_process()
    processes.initialize()
    there = os.path.lexists(values["output"])
    path = extract(
        values.pop("base"), values.pop("model"), values.pop("output"), **values
    )
    if processes.is_first():
        print(reporting.summary(json.loads((path / reporting.NAME).read_text())))
        print(f"{'Nothing to do, it is extracted' if there else 'Extracted'}: {path}")


def _check_numbers(rank: int, energy: float) -> None:
    if type(rank) is not int or rank < 0:
        raise UserError(f"rank must be a whole number from 0, not {rank!r}.")
    real = isinstance(energy, (int, float)) and not isinstance(energy, bool)
    if not real or not 0 <= energy < 1:
        raise UserError(f"energy must be a share in [0, 1), not {energy!r}.")
    if not rank and not energy:
        raise UserError("give a rank, or the share of energy to keep, or both.")


def _described(base: Source, model: Source) -> list[dict[str, Any]]:
    """Return the inputs' files, with their digests."""
    return [
        {"name": name, "files": [list(file) for file in source.files()]}
        for name, source in (("the base", base), ("the model", model))
    ]


def _is_done(
    output: str,
    inputs: Sequence[str],
    record: Mapping[str, Any],
    sources: Sequence[Source],
) -> bool:
    """Return whether the adapter is there, as this very command makes it.

    Raises:
      UserError: something else is there; or it is, as far as digests tell, but the
        models were written to since.
    """
    path = Path(output) / reporting.NAME
    if path.is_file():
        try:
            found = foreign_json.loads(path.read_bytes())
        except ValueError:
            found = {}
        if isinstance(found, dict) and record.items() <= found.items():
            if changed := manifest.written_since(found.get("written", []), sources):
                raise UserError(
                    f"{output} was extracted before {listed(changed)} got the time of "
                    "change that it has now; choose another output, and compare."
                )
            clear_parts(output)
            return True
    checkpoints.require_free_output(output, inputs)
    return False


def _fit_all(
    plan: Plan,
    base: Source,
    model: Source,
    rank: int,
    energy: float,
    dtype: np.dtype,
    parts: Parts,
) -> None:
    """Fit this process's matrices that no earlier run has."""
    leaves = tree.flatten(base.abstract)
    mine = range(processes.index(), len(plan.matrices), processes.count())
    # What a decomposition takes grows as the rows times the columns times the smaller.
    costs = {
        i: math.prod(leaves[plan.matrices[i]].shape)
        * min(leaves[plan.matrices[i]].shape)
        for i in mine
    }
    with Progress(
        sum(costs.values()), "extract", check=preemption.raise_if_asked
    ) as progress:
        for number, cost in costs.items():
            path = plan.matrices[number]
            if parts.has(number):
                progress.skip(cost)
                continue
            delta = _delta(path, 0, math.prod(leaves[path].shape), base, model)
            delta = delta.reshape(leaves[path].shape)
            if _is_embedding(path):
                delta = np.ascontiguousarray(delta.T)
            parts.keep(number, fit(delta, rank, energy, dtype))
            progress.advance(cost, path)
    processes.barrier("all matrices are fitted")


def _delta(path: str, start: int, size: int, base: Source, model: Source) -> np.ndarray:
    """Return elements of a task vector, float32."""
    both = []
    for name, source in (("the base", base), ("the model", model)):
        dtype = tree.flatten(source.abstract)[path].dtype
        found = np.empty(size, dtype)
        source.read_into(path, start, found)
        both.append(found.astype(np.float32))
        if not np.isfinite(both[-1]).all():
            raise UserError(f"NaN or Inf in the weights of:\n  {path} in {name}")
    return both[1] - both[0]


def _read_numbers(
    plan: Plan, base: Source, dtype: np.dtype, parts: Parts
) -> list[tuple[int, float, float, float]]:
    """Return (rank, norm, error, energy) of each matrix."""
    leaves = tree.flatten(base.abstract)
    found = []
    for number, path in enumerate(plan.matrices):
        one = parts.read(number, _shape(path, leaves), dtype)
        found.append((one.a.shape[0], one.norm, one.error, one.energy))
    return found


def _norms(paths: Sequence[str], base: Source, model: Source) -> dict[str, float]:
    """Return the norms of task vectors, of those that are not zero."""
    leaves = tree.flatten(base.abstract)
    found = {}
    for path in paths:
        size, squares = math.prod(leaves[path].shape), 0.0
        for start in range(0, size, _PART):
            part = _delta(path, start, min(_PART, size - start), base, model)
            squares += float(np.square(part, dtype=np.float64).sum())
        if squares:
            found[path] = math.sqrt(squares)
    return found


def _write(
    plan: Plan,
    base: Source,
    model: Source,
    fits: Sequence[tuple],
    dtype: np.dtype,
    parts: Parts,
    output: str,
    report: Mapping[str, Any],
    before: list[list],
) -> None:
    """Write the adapter, of the fits that are kept, and publish it."""
    leaves = tree.flatten(base.abstract)
    numbers = {p: i for i, p in enumerate(plan.matrices) if fits[i][0]}
    modules = {
        _module(p): Written(fits[i][0], 1.0, _is_embedding(p))
        for p, i in numbers.items()
    }
    if not modules and not plan.whole:
        raise UserError("the model does not differ from its base in these leaves.")
    abstract, order = {}, tree.flatten(model.abstract)
    for path, i in numbers.items():
        rows, columns = _shape(path, leaves)
        names = adapter_writer.factor_names(_module(path), _is_embedding(path))
        shapes = (fits[i][0], columns), (rows, fits[i][0])
        for name, shape in zip(names, shapes, strict=True):
            abstract[name] = jax.ShapeDtypeStruct(shape, dtype)
    for path in plan.whole:
        abstract[adapter_writer.leaf_name(path, modules)] = order[path]
    files = checkpoints.read_auxiliary_files(model.uri)
    files.pop("config.json", None)
    files |= {
        adapter_config.NAME: adapter_writer.config_file(
            modules,
            target_modules=_targets(modules, leaves),
            modules_to_save=sorted({p.rpartition(".")[0] for p in plan.whole}),
            base=base.uri,
        ),
        reporting.NAME: (json.dumps(report, indent=1) + "\n").encode(),
        "README.md": reporting.card(base.uri, model.uri, report).encode(),
    }
    with checkpoints.create(output, checkpoints.PEFT, abstract) as writer:
        mine = slice(processes.index(), None, processes.count())
        for path in list(numbers)[mine]:
            one = parts.read(numbers[path], _shape(path, leaves), dtype)
            _write_factors(writer, path, one)
        for path in plan.whole[mine]:
            values = np.empty(math.prod(order[path].shape), order[path].dtype)
            model.read_into(path, 0, values)
            writer.write(adapter_writer.leaf_name(path, modules), 0, values)
        processes.barrier("all factors are written")
        read = [base, model]
        processes.broadcast(lambda: checkpoints.require_unchanged(before, read))
        writer.finish(files)


def _write_factors(writer: checkpoints.Writer, path: str, one: Fit) -> None:
    names = adapter_writer.factor_names(_module(path), _is_embedding(path))
    for name, factor in zip(names, (one.a, one.b), strict=True):
        writer.write(name, 0, np.ascontiguousarray(factor).reshape(-1))


def _is_embedding(path: str) -> bool:
    """Return whether a matrix is an embedding's, whose factors PEFT has transposed."""
    return layer_leaf(path) is None and is_embedding(path)


def _shape(path: str, leaves: Mapping[str, Any]) -> tuple[int, int]:
    """Return the shape of BA."""
    shape = tuple(leaves[path].shape)
    return shape[::-1] if _is_embedding(path) else shape


def _module(path: str) -> str:
    return path.removesuffix(WEIGHT)


def _targets(modules: Mapping[str, Any], leaves: Mapping[str, Any]) -> list[str]:
    """Return the modules' last parts, if no other module's is one; or whole names."""
    last = {module.rpartition(".")[2] for module in modules}
    every = {_module(p) for p in leaves if p.endswith(WEIGHT)}
    others = {module.rpartition(".")[2] for module in every - modules.keys()}
    return sorted(modules if last & others else last)
