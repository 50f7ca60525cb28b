"""A model from one format into the other: safetensors as its family has them, or Orbax.

Safetensors come out with the family's names, one tensor for each layer, as transformers
reads them; Orbax with the decoder's leaves, layers stacked. Leaves go through memory in
ranges, whatever their size, and no bit of a weight changes.
"""

import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from merging import checkpoints
from merging.checkpoints import Writer
from merging.models.hf import (
    Model,
    auxiliary_files,
    open_gguf_model,
    open_model,
    row_size,
    scatter,
)
from merging.models.hf.gguf import GgufSource
from merging.runtime import config_keys, memory, processes, storage
from merging.runtime.errors import UserError, nearest
from merging.runtime.progress import Progress

RECORD = "conversion.json"
WORKERS = 2
# A range in memory, and the same again where it is transposed.
_COPIES = 2
_LARGEST_RANGE = 2**28
_TOKENIZERS = ("tokenizer", "vocab", "merges")
_KEYS = {
    "input": str,
    "output": str,
    "format": str,
    "memory_budget": "1GB",
    "shard_size": "5GB",
    "auxiliary_files": "",
}


class _Range(NamedTuple):
    """Elements [start, stop) of one of the decoder's leaves."""

    path: str
    start: int
    stop: int


def convert(
    input: str,
    output: str,
    *,
    format: str,
    memory_budget: str | int = "1GB",
    shard_size: str | int = "5GB",
    auxiliary_files: str | None = None,
) -> Path:
    """Write a checkpoint again in another format; called by all processes.

    Stopped at any moment and called again, it starts anew; the output appears when it
    is complete.

    Args:
      input: folder of the model, in either layout, with its config.json; or a GGUF
        file, by path or as ``package:NAME``, the one in an installed package.
      output: the folder to make; one that this very conversion has made is left.
      format: ``safetensors`` for the family's own layout, ``orbax`` for ours.
      memory_budget: of all ranges in memory, such as ``"1GB"``.
      shard_size: the most in one safetensors file.
      auxiliary_files: folder whose config.json and tokenizer to take; the input's if
        None.

    Returns:
      The output's path.

    Raises:
      UserError: the model is of no known family or not what its config.json says, or
        was changed meanwhile; the output exists, the budget is too small, the disk is
        full.
    """
    if not input or not output:
        raise UserError("name the checkpoint (input) and the folder to make (output).")
    if format not in checkpoints.FORMATS:
        raise nearest("format", format, checkpoints.FORMATS)
    budget, shard_bytes = map(storage.parse_size, (memory_budget, shard_size))
    opened = open_gguf_model if checkpoints.is_gguf(input) else open_model
    model = opened(input, auxiliary_files)
    files = _files(model, auxiliary_files)
    files |= {RECORD: _record(model, files, format, shard_bytes)}
    if processes.broadcast(lambda: _is_done(output, input, files[RECORD])):
        return Path(output)
    abstract = _abstract(model, format)
    ranges = list(_ranges(model, format, budget))
    mine = ranges[processes.index() :: processes.count()]
    # The source of a GGUF file does not say where that is.
    read = [] if isinstance(model.source, GgufSource) else [model.source]
    before = processes.broadcast(lambda: checkpoints.stamps(read))
    begun = checkpoints.create(
        output, format, abstract, shard_bytes=shard_bytes, beside=files
    )
    with begun as writer:
        _copy(model, writer, format, mine)
        processes.barrier("all is converted")
        processes.broadcast(lambda: checkpoints.require_unchanged(before, read))
        writer.finish(files)
    return Path(output)


def run(config: Any) -> None:
    """Do what a config says (see configs/convert/to_orbax.py).

    Raises:
      UserError: as `convert`.
    """
    values = config_keys.completed(
        config, _KEYS, "merging convert", "convert/to_orbax", remote=("input",)
    ).to_dict()
    memory.settle_process()
    processes.initialize()
    values["auxiliary_files"] = values["auxiliary_files"] or None
    there = os.path.lexists(values["output"])
    path = convert(values.pop("input"), values.pop("output"), **values)
    if processes.is_first():
        print(f"{'Nothing to do, it is converted' if there else 'Converted'}: {path}")


def _record(
    model: Model, files: Mapping[str, bytes], format: str, shard_bytes: int
) -> bytes:
    """Return what tells a conversion's output from another's."""
    record = {
        "format": format,
        "shard_bytes": shard_bytes,
        "inputs": [file._asdict() for file in model.source.files()],
        "files": {name: storage.digest(content) for name, content in files.items()},
    }
    return (json.dumps(record, indent=1, sort_keys=True) + "\n").encode()


def _is_done(output: str, input: str, record: bytes) -> bool:
    """Return whether the output is there and of this record; refuse another's."""
    storage.supported_path(output, "output")
    path = Path(output) / RECORD
    if path.is_file() and path.read_bytes() == record:
        return True
    checkpoints.require_free_output(output, [input])
    return False


def _files(model: Model, folder: str | None) -> dict[str, bytes]:
    """Return the config and tokenizer files to keep; warn if there is no tokenizer."""
    found = auxiliary_files(model, folder)
    if not any(name.startswith(_TOKENIZERS) for name in found):
        where = folder or model.source.uri
        text = f"{where} holds no tokenizer files, and so the output won't."
        warnings.warn(text, stacklevel=3)
    return found


def _abstract(model: Model, format: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Return {name: shape and dtype} of the output, in the order to store them."""
    if format == "orbax":
        return {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            for path, leaf in model.leaves.items()
        }
    return {
        name: jax.ShapeDtypeStruct(leaf.tensor_shape, leaf.dtype)
        for leaf in model.leaves.values()
        for name in leaf.tensors
    }


def _ranges(model: Model, format: str, budget: int) -> Iterator[_Range]:
    """Yield ranges that cover all leaves, of which `WORKERS` at a time fit the budget.

    They are whole rows, whole chunks where the output has chunks, and whole layers
    where these fit: parts of a transposed tensor are read or written line by line.
    """
    most = min(budget // (WORKERS * _COPIES), _LARGEST_RANGE)
    ours = {p: jax.ShapeDtypeStruct(x.shape, x.dtype) for p, x in model.leaves.items()}
    chunks = checkpoints.granularity(format, ours)
    for path, leaf in model.leaves.items():
        size, room = math.prod(leaf.shape), most // leaf.dtype.itemsize
        unit = min(math.lcm(chunks[path], row_size(leaf)), size)
        if unit > room:
            need = unit * leaf.dtype.itemsize * WORKERS * _COPIES
            raise UserError(
                f"{path}: {unit} elements of it must be in memory together, which "
                f"takes a memory budget of {need} bytes; raise memory_budget."
            )
        layers = math.lcm(unit, size // leaf.shape[0] if leaf.stacked else unit)
        step = room // (layers if layers <= room else unit)
        step *= layers if layers <= room else unit
        for start in range(0, size, step):
            yield _Range(path, start, min(start + step, size))


def _copy(model: Model, writer: Writer, format: str, ranges: Sequence[_Range]) -> None:
    """Read, turn and write the ranges, several at a time."""

    def work(part: _Range) -> int:
        leaf = model.leaves[part.path]
        values = np.empty(part.stop - part.start, leaf.dtype)
        model.read_into(part.path, part.start, values)
        if format == "orbax":
            writer.write(part.path, part.start, values)
        else:
            scatter(writer, leaf, part.start, values)
        return values.nbytes

    sizes = [(r.stop - r.start) * model.leaves[r.path].dtype.itemsize for r in ranges]
    with (
        Progress(sum(sizes), "convert") as progress,
        ThreadPoolExecutor(WORKERS, "convert") as pool,
    ):
        jobs = [pool.submit(work, part) for part in ranges]
        try:
            for job in as_completed(jobs):
                progress.advance(job.result())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
