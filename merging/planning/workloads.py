"""What is planned: models of a family, or checkpoints that are there."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from merging import checkpoints, methods, models
from merging.merge import streamed as stream
from merging.merge.partition import Partition, partition
from merging.methods import Method
from merging.models.hf import open_model
from merging.runtime import config_keys, tree
from merging.runtime.errors import UserError
from merging.runtime.storage import parse_size


class Workload(NamedTuple):
    """Models to merge, to score and to fine-tune; no weight of them is ever read.

    Attributes:
      name: for a person.
      decoder: None where the models are of no family known here.
      method: that merges the leaves; None where several do.
      experts: their names.
      plan: of the streamed merge.
      notes: what can't be planned, and why.
    """

    name: str
    decoder: models.DecoderConfig | None
    method: Method | None
    experts: tuple[str, ...]
    plan: Partition
    notes: tuple[str, ...] = ()

    @property
    def models(self) -> int:
        """How many are read for one merge."""
        return max(len(kind.read) for kind in self.plan.kinds)

    @property
    def parameters(self) -> int:
        """Elements of one model."""
        return sum(math.prod(shape) for shape in self.plan.shapes)


_KEYS = {
    "family": str,
    "size": str,
    "vocab_size": int,
    "experts": int,
    "method": ConfigDict,
    "memory_budget": "1GB",
    "mesh": ConfigDict(dict(fsdp=-1)),
    "storage": ConfigDict(),
    "scoring": ConfigDict(),
    "training": ConfigDict(),
    "efficiency": 0.5,
    "grid": ConfigDict(),
}


def workload(config: ConfigDict) -> tuple[ConfigDict, Workload]:
    """Return a config, a plan's own (configs/plan) or a merge's, and what it is about.

    Raises:
      UserError: it is neither, or says something impossible.
    """
    if not isinstance(config, ConfigDict) or {"family", "experts"} <= set(config):
        config = config_keys.completed(config, _KEYS, "merging plan", "plan/palm_64b")
        return config, of_family(config)
    if {"experts", "method"} <= set(config) or "merge_yaml" in config:
        return config, of_merge(config)
    raise UserError(
        "merging plan takes a config of a plan (--config plan/palm_64b) or of a merge "
        "(--config merge/ties); this one is neither."
    )


def of_family(config: Any, size: str = "", method: Method | None = None) -> Workload:
    """Return a family's model with experts of the same shape.

    Args:
      config: a plan's.
      size: of the family; the config's by default.
      method: the config's by default.
    """
    size = size or config.size
    vocabulary = config.vocab_size
    decoder = models.size(config.family, size, vocab_size=vocabulary)
    if method is None:
        settings = config.method.to_dict()
        method = methods.get(settings.pop("name"), **settings)
    if method.statistics is not None:
        raise UserError(
            f"{method.name} merges by statistics, whose bytes are those of the models: "
            "give the config of the merge, with its checkpoints."
        )
    if config.experts < 1:
        raise UserError(f"experts = {config.experts}: there must be one at least.")
    experts = tuple(f"expert{i}" for i in range(config.experts))
    method.reordered(range(len(experts)))  # refuses as many weights as do not fit
    leaves = tree.flatten(models.abstract(decoder))
    plan = partition(
        [leaves] * (len(experts) + method.needs_base),
        dict.fromkeys(leaves, method),
        parse_size(config.memory_budget),
        granularity=_chunks(leaves),
    )
    return Workload(f"{config.family} {size}", decoder, method, experts, plan)


def of_merge(config: Any) -> Workload:
    """Return the checkpoints that a merge's config names; reads their headers only."""
    job = stream.prepare(config)
    found = set(job.recipe.values())
    method = found.pop() if len(found) == 1 else None
    notes = []
    if method is None:
        notes.append("leaves are merged by several rules: only the streamed merge")
    elif method.statistics is not None:
        method = None
        notes.append("the leaves are merged by statistics: only the streamed merge")
    try:
        decoder = open_model(job.inputs.first.uri).config
    except UserError as error:
        decoder = None
        notes.append(
            "only the streamed merge, as the model is of no known family: "
            + str(error).splitlines()[0]
        )
    if decoder is not None:
        stored = _stored_dtype(job.inputs.first_leaves)
        both = {"dtype": stored, "param_dtype": stored}
        # Recomputed in the backward pass, as the family's large sizes are.
        decoder = dataclasses.replace(decoder, remat=True, **both)
    names = tuple(job.inputs.experts)
    name = job.inputs.first.uri
    return Workload(name, decoder, method, names, job.partition(), tuple(notes))


def _stored_dtype(leaves: Mapping[str, jax.ShapeDtypeStruct]) -> str:
    """Return the dtype of most of a checkpoint's elements."""
    sizes: dict[str, int] = {}
    for leaf in leaves.values():
        name = str(np.dtype(leaf.dtype))
        sizes[name] = sizes.get(name, 0) + math.prod(leaf.shape)
    return max(sizes, key=sizes.__getitem__)


def _chunks(leaves: Mapping[str, jax.ShapeDtypeStruct]) -> Any:
    return checkpoints.granularity("safetensors", leaves).__getitem__
