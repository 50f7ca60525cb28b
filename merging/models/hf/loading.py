"""A model from a folder: its config.json, and its weights in either layout."""

import dataclasses
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from merging import checkpoints
from merging.checkpoints import Source
from merging.models.config import DTYPES, DecoderConfig
from merging.models.functional import Params, abstract
from merging.models.hf.family import Family, Leaf, fitted, leaves
from merging.models.hf.gguf import GgufSource
from merging.models.hf.layout import gather
from merging.models.hf.own import describe
from merging.models.hf.registry import read_config
from merging.models.partition_rules import partition_rules
from merging.runtime import sharding, storage, tree
from merging.runtime.errors import UserError, nearest

CONFIG, GENERATION = "config.json", "generation_config.json"
PIECE = 2**26  # bytes of rows that are read at a time


class Model(NamedTuple):
    """A checkpoint whose config.json is known; no weight of it has been read.

    Attributes:
      family: what it is.
      config: as a decoder.
      leaves: {path: leaf} of the decoder, with the dtypes of the checkpoint.
      source: its weights.
      stacked: whether it has the decoder's layout, and not the family's.
    """

    family: Family
    config: DecoderConfig
    leaves: dict[str, Leaf]
    source: Source | GgufSource
    stacked: bool

    @property
    def dtype(self) -> str:
        """The dtype that the checkpoint has its weights in."""
        return str(self.leaves["embed"].dtype)

    def read_into(self, path: str, start: int, out: np.ndarray) -> None:
        """Fill `out` with elements [start, start + len) of a decoder's leaf.

        Args:
          path: of the leaf.
          start: the first element, at the begin of a row.
          out: one-dimensional, of the leaf's dtype, whole rows.
        """
        if self.stacked:
            self.source.read_into(path, start, out)
        else:
            gather(self.source, self.leaves[path], start, out)


def open_model(uri: str | os.PathLike, described: str | None = None) -> Model:
    """Open a checkpoint of a known family, stacked (ours) or as the family has it.

    Args:
      uri: its folder, safetensors or Orbax.
      described: the folder with its config.json, if it has none itself.

    Raises:
      UserError: no config.json, or one that can't be built here; leaves that are
        missing, extra or of other shapes than it says, all of them listed.
    """
    uri = os.fspath(uri)
    source = checkpoints.open_checkpoint(uri, rounded=True)
    family, config = read_config(_config_of(described or uri))
    _require_tied(source, config)
    table, found = leaves(family, config), tree.flatten(source.abstract)
    if "embed" not in found:
        return Model(family, config, fitted(table, found), source, False)
    expected = {CONFIG: abstract(config), "the checkpoint": source.abstract}
    if lines := tree.differences(expected):
        raise UserError(
            f"the leaves are not those of {CONFIG}'s model:\n  " + "\n  ".join(lines)
        )
    table = {
        path: leaf._replace(dtype=np.dtype(found[path].dtype))
        for path, leaf in table.items()
    }
    return Model(family, config, table, source, True)


def open_gguf_model(uri: str, described: str | None = None) -> Model:
    """Open a GGUF file to import it: its tensors as its family has them.

    Args:
      uri: a path, or `package:NAME`, the one in an installed Python package.
      described: the folder whose config.json to follow, instead of the metadata.

    Raises:
      UserError: as `GgufSource` and `open_model`.
    """
    source = GgufSource(uri)
    text = _config_of(described) if described else source.described()
    family, config = read_config(text)
    table = fitted(leaves(family, config), tree.flatten(source.abstract))
    return Model(family, config, table, source, False)


def auxiliary_files(model: Model, folder: str | None = None) -> dict[str, bytes]:
    """Return {name: content} of the config and tokenizer files of a model.

    Args:
      model: whose.
      folder: where to take them from instead.
    """
    source = model.source
    if folder is None and isinstance(source, GgufSource):
        return {CONFIG: source.described()} | source.tokenizer_files()
    return checkpoints.read_auxiliary_files(folder or source.uri)


def identity(model: Model) -> str:
    """Return a hash of a checkpoint's config.json and of every byte of its files."""
    files = checkpoints.content(model.source)
    described = checkpoints.read_auxiliary_files(model.source.uri)
    return storage.digest(described.get(CONFIG, b""), files)


def files_of_trained(
    config: DecoderConfig,
    start: str = "",
    *,
    tokenizer: Mapping[str, bytes],
    eos_id: int,
) -> dict[str, bytes]:
    """Return {name: content} of what to lay beside parameters that were trained.

    Args:
      config: of a family, if the start says nothing of it.
      start: the checkpoint that training began with; its config goes along.
      tokenizer: the files of the one that was trained with.
      eos_id: its end mark, for a family's config.
    """
    files = checkpoints.read_auxiliary_files(start) if start else {}
    if tokenizer:
        files = {n: files[n] for n in (CONFIG, GENERATION) if n in files}
    return {CONFIG: describe(config, eos_id).encode()} | files | dict(tokenizer)


def load(
    uri: str | os.PathLike,
    *,
    dtype: str | None = None,
    mesh: Mesh | None = None,
    described: str | None = None,
) -> tuple[DecoderConfig, Params]:
    """Return a checkpoint's decoder and its parameters, ready for `forward`.

    Each process reads what its own devices hold, some rows at a time, and never has
    more than its share of one leaf beside what lies on the devices.

    Args:
      uri: the folder, with its config.json.
      dtype: of the parameters and activations; as stored if None.
      mesh: devices to shard the parameters over; the first device holds all if None.
      described: the folder with its config.json, if it has none itself.

    Raises:
      UserError: as `open_model`, or a mesh that does not divide the leaves.
      CorruptCheckpoint: bytes of a checkpoint with checksums have changed.

    >>> import merging
    >>> from pathlib import Path
    >>> from merging.models import hf
    >>> tiny = merging.models.size("tiny", "1x", vocab_size=400)
    >>> merging.checkpoints.save("model", merging.models.init(tiny, seed=0))
    >>> written = Path("model/config.json").write_text(hf.describe(tiny, eos_id=1))
    >>> decoder, params = hf.load("model")
    >>> decoder.layers, decoder.vocab_size
    (2, 400)
    """
    return read(open_model(uri, described), dtype=dtype, mesh=mesh)


def with_weights_of(model: Model, source: Source) -> Model:
    """Return the same model with another checkpoint's weights, such as an adapter's.

    Raises:
      UserError: its leaves are not those of the model.
    """
    found = tree.flatten(source.abstract)
    table = model.leaves
    if not model.stacked:
        return model._replace(source=source, leaves=fitted(table, found))
    both = {"the model": model.source.abstract, source.uri: source.abstract}
    if lines := tree.differences(both):
        raise UserError(f"{source.uri} is another model:\n  " + "\n  ".join(lines))
    leaves = {
        path: leaf._replace(dtype=np.dtype(found[path].dtype))
        for path, leaf in table.items()
    }
    return model._replace(source=source, leaves=leaves)


def read(
    model: Model, *, dtype: str | None = None, mesh: Mesh | None = None
) -> tuple[DecoderConfig, Params]:
    """Return an opened model's decoder and parameters; as `load`."""
    if dtype is not None and dtype not in DTYPES:
        raise nearest("dtype", dtype, DTYPES)
    shardings = {}
    if mesh is not None:
        rules = partition_rules(model.config)
        chosen = sharding.shardings(abstract(model.config), rules, mesh)
        shardings = tree.flatten(chosen)
    both = {"dtype": dtype or model.dtype, "param_dtype": dtype or model.dtype}
    config = dataclasses.replace(model.config, **both)
    # An adapter on an Orbax folder has its format, and no restore.
    if model.stacked and hasattr(model.source, "restore"):
        wanted = {
            path: jax.ShapeDtypeStruct(
                leaf.shape, dtype or leaf.dtype, sharding=shardings.get(path)
            )
            for path, leaf in model.leaves.items()
        }
        # With checksums where we wrote it, and each process reads its part.
        return config, model.source.restore(tree.unflatten(wanted))
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    params = {
        path: read_leaf(model, path, shardings.get(path, here), dtype)
        for path in model.leaves
    }
    return config, tree.unflatten(params)


def read_leaf(
    model: Model, path: str, where: jax.sharding.Sharding, dtype: str | None
) -> jax.Array:
    """Return a leaf, of which this process reads the rows that its devices hold."""
    leaf = model.leaves[path]
    shape = leaf.shape
    devices = where.addressable_devices_indices_map(shape)
    # Rows are read once for all the devices that hold some of their columns.
    parts: dict[tuple, dict[tuple, np.ndarray]] = {}
    for index in devices.values():
        box = _box(index, shape)
        part = np.empty([stop - start for start, stop in box], dtype or leaf.dtype)
        parts.setdefault(box[:-1], {})[box[-1:]] = part
    for rows, columns in parts.items():
        for at, found in _rows(model, path, rows):
            for ((first, last),), part in columns.items():
                part.reshape(-1, last - first)[at : at + len(found)] = found[
                    :, first:last
                ]
    arrays = []
    for device, index in devices.items():
        box = _box(index, shape)
        arrays.append(jax.device_put(parts[box[:-1]][box[-1:]], device))
    return jax.make_array_from_single_device_arrays(shape, where, arrays)


def _rows(
    model: Model, path: str, box: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield a box of whole rows in pieces: (first, array [n, columns])."""
    leaf = model.leaves[path]
    width, outer = leaf.shape[-1], leaf.shape[:-1]
    most = max(1, PIECE // (width * leaf.dtype.itemsize))
    begin, end = box[-1] if box else (0, 1)
    at = 0
    for place in itertools.product(*(range(*bounds) for bounds in box[:-1])):
        before = int(np.ravel_multi_index((*place, 0), outer)) if outer else 0
        for first in range(begin, end, most):
            found = np.empty((min(most, end - first), width), leaf.dtype)
            model.read_into(path, (before + first) * width, found.reshape(-1))
            yield at, found
            at += len(found)


def _box(index: Any, shape: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return the bounds of a device's part along every axis."""
    return tuple(
        part.indices(size)[:2] for part, size in zip(index, shape, strict=True)
    )


def _config_of(folder: str) -> bytes:
    files = checkpoints.read_auxiliary_files(folder)
    if CONFIG not in files:
        raise UserError(
            f"{folder} holds no {CONFIG}, which says what model it is; name a folder "
            "of the same model that does (auxiliary_files)."
        )
    return files[CONFIG]


def _require_tied(source: Source, config: DecoderConfig) -> None:
    """Leave out output weights that repeat the embedding, where they are to be tied."""
    head = checkpoints.stored_head(source)
    if head is None or not config.tied_embeddings:
        return
    if not checkpoints.repeats_embedding(source):
        raise UserError(
            f"{source.uri}: {CONFIG} ties the output to the embedding, but {head} holds"
            " other weights. If they are the model's, set tie_word_embeddings to false "
            f"in {CONFIG}; if not, save the model without them."
        )
    checkpoints.forget_head(source)
