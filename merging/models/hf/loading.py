"""A model from a folder: its config.json, and its weights in either layout."""

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import NamedTuple

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
    return storage.digest(_config_of(model.source.uri), files)


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
    uri: str | os.PathLike, *, dtype: str | None = None, mesh: Mesh | None = None
) -> tuple[DecoderConfig, Params]:
    """Return a checkpoint's decoder and its parameters, ready for `forward`.

    Args:
      uri: the folder, with its config.json.
      dtype: of the parameters and activations; as stored if None.
      mesh: devices to shard the parameters over; the first device holds all if None.

    Raises:
      UserError: as `open_model`, or a mesh that does not divide the leaves.
      CorruptCheckpoint: bytes of a checkpoint with checksums have changed.
    """
    if dtype is not None and dtype not in DTYPES:
        raise nearest("dtype", dtype, DTYPES)
    model = open_model(uri)
    shardings = {}
    if mesh is not None:
        rules = partition_rules(model.config)
        chosen = sharding.shardings(abstract(model.config), rules, mesh)
        shardings = tree.flatten(chosen)
    stored = str(model.leaves["embed"].dtype)
    both = {"dtype": dtype or stored, "param_dtype": dtype or stored}
    config = dataclasses.replace(model.config, **both)
    if model.source.format == "orbax" and model.stacked:
        wanted = {
            path: jax.ShapeDtypeStruct(
                leaf.shape, dtype or leaf.dtype, sharding=shardings.get(path)
            )
            for path, leaf in model.leaves.items()
        }
        # With checksums where we wrote it, and each process reads its part.
        return config, model.source.restore(tree.unflatten(wanted))
    params = {}
    for path, leaf in model.leaves.items():
        whole = np.empty(math.prod(leaf.shape), leaf.dtype)
        model.read_into(path, 0, whole)
        whole = whole.reshape(leaf.shape).astype(dtype or leaf.dtype)
        where = shardings.get(path)
        params[path] = (
            jax.device_put(whole) if where is None else sharding.place(whole, where)
        )
    return config, tree.unflatten(params)


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
