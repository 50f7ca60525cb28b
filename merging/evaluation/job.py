"""Evaluating a model on a suite: the job of `merging.evaluate` and `merging evaluate`.

The model is in memory or in storage, on any mesh. With a workdir, every finished
dataset is a file there, named after all that its values depend on: the same call
continues, and redoes nothing. Here models meet the evaluator; the rest of the room
knows no model.
"""

import functools
import io
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from merging import checkpoints, evaluation, models, tasks
from merging.evaluation import store
from merging.evaluation.requests import TemplateRequests, dataset_names, metrics_of
from merging.evaluation.scores import DatasetScore
from merging.evaluation.store import Record
from merging.evaluation.tables import truncation
from merging.models import hf
from merging.runtime import preemption, processes, sharding, storage, text
from merging.runtime.errors import Preempted, UserError
from merging.runtime.progress import EventLog, Progress
from merging.runtime.revision import git_revision

# FLOPs done in the time that a compilation takes: on two CPU cores 0.6 s at 80 GFLOP/s,
# measured; on an accelerator, of each device, some seconds at 200 TFLOP/s, guessed.
_COMPILATION = {"cpu": 5e10}
_COMPILATION_ON_ACCELERATORS = 1e15
_TOKENIZERS = ("tokenizer.json", "tokenizer.model")


class Model(NamedTuple):
    """A model to evaluate.

    Attributes:
      name: where it is; "" for one in memory.
      config: its decoder.
      params: its parameters; None while they are in storage.
      family: its family's name.
      parameters: how many it has.
      identity: hash of its weights' files (sampled) and its config.json.
      tokenizer: folder of its tokenizer; "" if none is known.
    """

    name: str
    config: models.DecoderConfig
    params: models.Params | None
    family: str
    parameters: int
    identity: str
    tokenizer: str


def open_model(
    model: str | os.PathLike | tuple[models.DecoderConfig, models.Params],
    tokenizer: str = "",
) -> Model:
    """Return a checkpoint, of which no weight is read yet, or a model in memory.

    Args:
      model: the checkpoint's folder; or a decoder and its parameters.
      tokenizer: folder of its tokenizer; the checkpoint's own by default.

    Raises:
      UserError: as `models.hf.open_model`.
    """
    if isinstance(model, tuple):
        config, params = model
        count = models.parameter_count(config)
        return Model("", config, params, "", count, "", tokenizer)
    uri = os.fspath(model)
    found, files = hf.open_model(uri), checkpoints.companions(uri)
    own = any(name in _TOKENIZERS or name.endswith(".model") for name in files)
    return Model(
        name=uri,
        config=found.config,
        params=None,
        family=found.family.name,
        parameters=models.parameter_count(found.config),
        identity=hf.identity(found),
        tokenizer=tokenizer or (uri if own else ""),
    )


def open_suite(name: str, model: Model, settings: Mapping[str, Any]) -> tasks.Suite:
    """Return a suite by name, in the model's tokens.

    Raises:
      UserError: as `tasks.suite`.
    """
    return tasks.suite(name, **dict(settings) | {"tokenizer": model.tokenizer})


def evaluate(
    model: str | os.PathLike | tuple[models.DecoderConfig, models.Params] | Model,
    suite: tasks.Suite | str,
    *,
    split: str = "test",
    datasets: Iterable[str] | None = None,
    count: int | None = None,
    metrics: Sequence[str] = (),
    context: int | None = None,
    batch_size: int = 32,
    dtype: str | None = None,
    mesh: Mesh | None = None,
    workdir: str | os.PathLike | None = None,
) -> list[DatasetScore]:
    """Return what a model scores on the datasets of a suite, in the suite's order.

        scores = merging.evaluate("MODEL", "miniworld", datasets=["copa"])
        print({score.dataset: score.value for score in scores})

    Args:
      model: the folder of a checkpoint of a known family, with its config.json; or
        ``(decoder, params)`` in memory, the parameters already on the mesh.
      suite: from `merging.tasks.suite`, in the model's tokens; or a suite's name, which
        is read in the tokens of the checkpoint's own tokenizer, if it has one.
      split: "train", "validation" or "test".
      datasets: names; all of the suite's by default.
      count: the first examples of each dataset; all by default.
      metrics: names of those to find beside each dataset's own, where they fit.
      context: the most tokens the model is given; what its config says by default. Of a
        longer prompt the end is kept.
      batch_size: rows of a call.
      dtype: of a checkpoint's parameters and activations; as stored by default.
      mesh: devices to split the batches over; one device by default.
      workdir: where to keep every finished dataset, and to go on from.

    Raises:
      UserError: a checkpoint, suite, dataset, metric or split that can't be used; a
        tokenizer that is not the model's; a batch that the mesh does not divide; a
        workdir for a model in memory.
      Preempted: the system asked to stop; what is finished is in the workdir.
    """
    if not isinstance(model, Model):
        model = open_model(model)
    if workdir is not None and not model.identity:
        raise UserError(
            "a model in memory has no name to keep its scores under: save it, and "
            "evaluate the checkpoint; or leave out workdir."
        )
    if isinstance(suite, str):
        suite = open_suite(suite, model, {})
    _require_own_tokens(suite, model)
    work = _Work(
        *(model, suite, split, count, tuple(metrics)),
        *(context or model.config.max_length, batch_size, dtype, mesh),
    )
    names = dataset_names(suite, datasets)
    if workdir is None:
        found = _evaluated(work, names, None, lambda name, record: None)
        return [found[name].score for name in names]
    place = Path(workdir)
    keys = {name: _key(work, name) for name in names}
    finished = processes.broadcast(lambda: _finished(place, keys))
    found = {name: store.unpacked(values) for name, values in finished.items()}
    first = processes.is_first()

    def keep(name: str, record: Record) -> None:
        if first:
            store.save(place, keys[name], record)

    if missing := [name for name in names if name not in found]:
        found |= _evaluated(work, missing, place, keep)
    if first:
        store.write_index(place, keys, {"model": model.name, "suite": suite.name})
    processes.barrier("the scores are written")
    return [found[name].score for name in names]


class _Work(NamedTuple):
    """What `evaluate` was asked for, after defaults."""

    model: Model
    suite: tasks.Suite
    split: str
    count: int | None
    metrics: tuple[str, ...]
    context: int
    batch_size: int
    dtype: str | None
    mesh: Mesh | None


def _key(work: _Work, name: str) -> str:
    """Return a hash of all that a dataset's values depend on."""
    return storage.digest(
        *(work.model.identity, work.suite.digest, name, work.split, work.count),
        *(metrics_of(work.suite, name, work.metrics), work.context, work.dtype),
    )


def _finished(workdir: Path, keys: Mapping[str, str]) -> dict[str, Any]:
    loaded = {name: store.load(workdir, name, key) for name, key in keys.items()}
    return {name: store.packed(found) for name, found in loaded.items() if found}


def _require_own_tokens(suite: tasks.Suite, model: Model) -> None:
    size, rows = len(suite.tokenizer), model.config.vocab_size
    if size > rows:
        where = suite.tokenizer_path or f"suite {suite.name}"
        raise UserError(
            f"the tokenizer of {where} has {size} ids, and the model's embedding "
            f"{rows} rows: they do not belong together. Name the model's own tokenizer "
            "(tokenizer)."
        )


def _evaluated(
    work: _Work,
    names: list[str],
    workdir: Path | None,
    keep: Callable[[str, Record], None],
) -> dict[str, Record]:
    """Return {dataset: record}, each told to `keep` when it is finished."""
    first = processes.is_first()
    progress = functools.partial(Progress, stream=None if first else io.StringIO())
    asked = _read(work, names, workdir, progress)
    if first and work.model.params is None:
        size = text.parameters(work.model.parameters)
        print(f"Reading {size} parameters of {work.model.name}.", file=sys.stderr)
    predictor, rows = _bind(work.model, work.dtype, work.mesh)
    log = EventLog(workdir / "events.jsonl" if workdir and first else None)
    total = sum(one.tokens for one in asked.sets)
    found = {}
    with progress(total, "evaluating", log=log, check=_stop) as shown:
        for name in names:
            start = time.monotonic()
            (score,) = evaluation.evaluate(
                asked,
                predictor,
                datasets=[name],
                batch_size=work.batch_size,
                sharding=rows,
                compile_cost=compile_cost(work.model.parameters),
                tick=functools.partial(shown.advance, note=name),
            )
            seconds = round(time.monotonic() - start, 3)
            found[name] = Record(score, seconds, git_revision())
            keep(name, found[name])
    return found


def _read(
    work: _Work, names: list[str], workdir: Path | None, progress: Callable
) -> evaluation.Requests:
    """Return the datasets' requests."""
    templates = sum(len(work.suite.evaluations(name)) for name in names)
    with progress(templates, "reading", check=preemption.raise_if_asked) as shown:

        def read(one: TemplateRequests) -> None:
            shown.advance(note=one.dataset.name)
            if one.truncated:
                prompts = one.eval_set.examples
                shown.message(truncation(one.dataset.name, one.truncated, prompts))

        return evaluation.requests(
            work.suite,
            work.split,
            datasets=names,
            count=work.count,
            metrics=work.metrics,
            context=work.context,
            vocab_size=work.model.config.vocab_size,
            cache_dir=workdir / "data" if workdir else None,
            read=read,
        )


def _bind(
    model: Model, dtype: str | None, mesh: Mesh | None
) -> tuple[models.Predictor, Any]:
    """Return the model's predictor, its parameters read, and how batches are split.

    Raises:
      UserError: a mesh that does not fit the leaves.
    """
    config, params = model.config, model.params
    if params is None:
        config, params = hf.load(model.name, dtype=dtype, mesh=mesh)
    bound = (functools.partial(call, params) for call in models.predictor(config, mesh))
    rows = None if mesh is None else sharding.batch_sharding(mesh)
    return models.Predictor(*bound), rows


def compile_cost(parameters: int) -> float:
    """Return how many tokens a model handles in the time of a compilation, roughly."""
    flops = _COMPILATION.get(jax.default_backend())
    flops = flops or _COMPILATION_ON_ACCELERATORS * jax.device_count()
    return flops / (2 * parameters)


def _stop() -> None:
    # Between the same two batches on every process, which meet in collectives.
    if processes.preempted():
        raise Preempted("stopped by SIGTERM")
