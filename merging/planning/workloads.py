"""What is planned: models of a family, or checkpoints that are there."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from merging import checkpoints, methods, models, sweep
from merging.merge import streamed as stream
from merging.merge.cutting import partition
from merging.merge.partition import Partition
from merging.methods import Method
from merging.models.hf import open_model
from merging.runtime import config_keys, tree
from merging.runtime.errors import UserError
from merging.runtime.storage import parse_size
from merging.sweep import Grid
from merging.sweep.work import TRAINED_IN


class Workload(NamedTuple):
    """Models to merge, to score and to fine-tune; no weight of them is ever read.

    Attributes:
      name: for a person.
      decoder: None where the models are of no family known here.
      method: that merges the leaves; None where several do.
      experts: their names.
      plan: of the streamed merge.
      notes: what can't be planned, and why.
      grid: the steps that it is the largest merge of, if it is of a sweep.
    """

    name: str
    decoder: models.DecoderConfig | None
    method: Method | None
    experts: tuple[str, ...]
    plan: Partition
    notes: tuple[str, ...] = ()
    grid: Grid | None = None

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
    "evaluation": ConfigDict(),
}


def workload(config: ConfigDict) -> tuple[ConfigDict, Workload]:
    """Return a plan's config, and what it is about.

    Args:
      config: that of a sweep (configs/scaling_curves), a plan's own (configs/plan) or a
        merge's.

    Raises:
      UserError: it is neither, or says something impossible.
    """
    if isinstance(config, ConfigDict) and "experts_merged" in config:
        return of_sweep(config)
    if not isinstance(config, ConfigDict) or {"family", "experts"} <= set(config):
        config = config_keys.completed(config, _KEYS, "merging plan", "plan/palm_64b")
        return config, of_family(config)
    if {"experts", "method"} <= set(config) or "merge_yaml" in config:
        return config, of_merge(config)
    raise UserError(
        "merging plan takes a config of a sweep (--config scaling_curves/palm), of a "
        "plan (--config plan/palm_64b) or of a merge (--config merge/ties); this one is"
        " none of them."
    )


def of_sweep(config: ConfigDict) -> tuple[ConfigDict, Workload]:
    """Return a sweep's assumptions, and the largest of its merges.

    No data need be there, and of our own families no checkpoint.

    Raises:
      UserError: as `sweep.planned`.
    """
    experiment = sweep.planned(config)
    grid = Grid(experiment, identify=lambda path, described: path)
    assumed = config_keys.section(_assumptions, config.get("plan", {}), "plan")
    size = experiment.sizes[-1]
    first, *rest = experiment.methods
    name = next((m for m in ("ties", *rest) if m in experiment.methods), first)
    decoder = experiment.decoder(size)
    method = methods.get(name, **experiment.candidates(name)[0])
    names = tuple(f"expert{i}" for i in range(max(experiment.counts(name))))
    label = f"{experiment.family} {size}"
    found = of_decoder(label, decoder, method, names, assumed.pop("budget"))
    mesh = {k: v for k, v in experiment.mesh.items() if (k, v) != ("data", 1)}
    shape = {"batch": experiment.batch_size, "length": assumed["length"]}
    plan = ConfigDict(
        {
            "mesh": mesh,
            "storage": {k: assumed[k] for k in ("read", "write")},
            "scoring": {k: assumed[k] for k in ("batch", "length")},
            "training": shape | {"param_dtype": TRAINED_IN, "dtype": experiment.dtype},
            "efficiency": assumed["efficiency"],
            "evaluation": {k: assumed[k] for k in ("rows", "validation_rows")},
        }
    )
    return plan, found._replace(grid=grid)


def _assumptions(
    read: float = 2.0,
    write: float = 1.0,
    efficiency: float = 0.5,
    batch: int = 128,
    length: int = 1024,
    rows: int = 100_000,
    validation_rows: int = 8_000,
    budget: str = "1GB",
) -> dict[str, Any]:
    """Return what a sweep's section `plan` may say, with what it leaves out."""
    return dict(locals())


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
    name = f"{config.family} {size}"
    return of_decoder(name, decoder, method, experts, config.memory_budget)


def of_decoder(
    name: str,
    decoder: models.DecoderConfig,
    method: Method,
    experts: tuple[str, ...],
    budget: str,
) -> Workload:
    """Return the merge of experts of a decoder's shape.

    Args:
      name: for a person.
      decoder: the base and each expert.
      method: that merges them.
      experts: their names.
      budget: of memory, for the streamed merge.
    """
    leaves = tree.flatten(models.abstract(decoder))
    plan = partition(
        [leaves] * (len(experts) + method.needs_base),
        dict.fromkeys(leaves, method),
        parse_size(budget),
        granularity=_chunks(leaves),
    )
    return Workload(name, decoder, method, experts, plan)


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
            + str(error).splitlines()[0].rstrip(".")
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
