"""The model under evaluation: what it is, whether the suite's tokens are its own."""

import functools
import math
import os
from typing import Any, NamedTuple

import jax

from merging import checkpoints, models, tasks
from merging.evaluation.settings import Settings
from merging.models import hf as families
from merging.runtime import sharding
from merging.runtime.errors import UserError

# FLOPs done in the time that a compilation takes: on two CPU cores 0.6 s at 80 GFLOP/s,
# measured; on an accelerator, of each device, some seconds at 200 TFLOP/s, guessed.
_COMPILATION = {"cpu": 5e10}
_COMPILATION_ON_ACCELERATORS = 1e15
_TOKENIZERS = ("tokenizer.json", "tokenizer.model")


class Opened(NamedTuple):
    """A checkpoint of which no weight has been read.

    Attributes:
      uri: where it is.
      config: its decoder.
      family: its family's name.
      parameters: how many it has.
      identity: hash of its weights' files (sampled) and its config.json.
      tokenizer: folder of its tokenizer; "" if none is known.
    """

    uri: str
    config: models.DecoderConfig
    family: str
    parameters: int
    identity: str
    tokenizer: str


class Bound(NamedTuple):
    """A model with its parameters in place, and how batches are split for it."""

    predict: models.Predictor
    sharding: Any


def opened(settings: Settings) -> Opened:
    """Open the checkpoint.

    Raises:
      UserError: as `families.open_model`.
    """
    uri = settings.checkpoint
    found = families.open_model(uri)
    files = checkpoints.companions(uri)
    own = any(name in _TOKENIZERS or name.endswith(".model") for name in files)
    return Opened(
        uri=uri,
        config=found.config,
        family=found.family.name,
        parameters=models.parameter_count(found.config),
        identity=families.identity(found),
        tokenizer=settings.tokenizer or (uri if own else ""),
    )


def open_suite(settings: Settings, model: Opened) -> tasks.Suite:
    """Return the suite in the model's tokens.

    Raises:
      UserError: as `tasks.suite`, or a vocabulary larger than the model's embedding.
    """
    chosen = dict(settings.suite_settings) | {"tokenizer": model.tokenizer}
    suite = tasks.suite(settings.suite, **chosen)
    size, rows = len(suite.tokenizer), model.config.vocab_size
    if size > rows:
        where = model.tokenizer or f"suite {settings.suite}"
        raise UserError(
            f"the tokenizer of {where} has {size} ids, and the model's embedding "
            f"{rows} rows: they do not belong together. Name the model's own tokenizer "
            "(tokenizer)."
        )
    return suite


def context(settings: Settings, model: Opened) -> int:
    """Return the most tokens that the model is given at a time."""
    return settings.context or model.config.max_length


def compilation(model: Opened) -> float:
    """Return how many tokens the model scores in the time of a compilation, roughly."""
    flops = _COMPILATION.get(jax.default_backend())
    flops = flops or _COMPILATION_ON_ACCELERATORS * jax.device_count()
    return flops / (2 * model.parameters)


def bind(settings: Settings, model: Opened) -> Bound:
    """Read the parameters, on the mesh if there are several devices.

    Raises:
      UserError: a mesh that does not fit the devices, the leaves or the batch.
    """
    mesh = None
    if jax.device_count() > 1 or math.prod(map(abs, settings.mesh.values())) > 1:
        mesh = sharding.make_mesh(settings.mesh)
    config, params = families.load(
        os.fspath(model.uri), dtype=settings.dtype, mesh=mesh
    )
    bound = (functools.partial(call, params) for call in models.predictor(config, mesh))
    rows = None if mesh is None else sharding.batch_sharding(mesh)
    return Bound(models.Predictor(*bound), rows)
