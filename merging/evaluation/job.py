"""Evaluating a model on a suite: the job of `merging.evaluate` and `merging evaluate`.

The model is in memory or in storage, on any mesh. With a workdir, every finished
dataset is a file there, named after all that its values depend on: the same call
continues, and redoes nothing. Here models meet the evaluator; the rest of the room
knows no model.
"""

import functools
import io
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from merging import checkpoints, evaluation, models, tasks
from merging.evaluation import store
from merging.evaluation.requests import TemplateRequests, dataset_names, metrics_of
from merging.evaluation.scores import DatasetScore, Record
from merging.evaluation.tables import truncation
from merging.models import hf
from merging.runtime import preemption, processes, sharding, storage
from merging.runtime import workdir as workdirs
from merging.runtime.errors import Preempted, UserError
from merging.runtime.progress import EventLog, Progress
from merging.runtime.revision import git_revision
from merging.runtime.storage import Folder
from merging.runtime.text import parameters as shown_parameters

# FLOPs done in the time that a compilation takes: on two CPU cores 0.6 s at 80 GFLOP/s,
# measured; on an accelerator, of each device, some seconds at 200 TFLOP/s, guessed.
_COMPILATION = {"cpu": 5e10}
_COMPILATION_ON_ACCELERATORS = 1e15


class Model(NamedTuple):
    """A model to evaluate.

    Attributes:
      config: its decoder.
      parameters: how many it has.
      load: ``(dtype, mesh) -> (decoder, params)``.
      uri: where it is; "" for one in memory, as are the rest.
      family: its family's name.
      identity: hash of every byte of its files, and of its config.json.
      tokenizer: folder of its tokenizer, if one is known.
    """

    config: models.DecoderConfig
    parameters: int
    load: Callable[[str | None, Mesh | None], tuple[models.DecoderConfig, Any]]
    uri: str = ""
    family: str = ""
    identity: str = ""
    tokenizer: str = ""


def open_model(uri: str | os.PathLike, tokenizer: str = "") -> Model:
    """Return a checkpoint, of which no weight is read yet.

    Args:
      uri: its folder, with its config.json.
      tokenizer: folder of its tokenizer; the checkpoint's own by default.

    Raises:
      UserError: as `models.hf.open_model`.
    """
    uri = os.fspath(uri)
    found, files = hf.open_model(uri), checkpoints.auxiliary_files(uri)
    own = [p for name, p in files.items() if tasks.holds_tokenizer({name: p})]
    uri = found.source.uri  # of a run's folder, the step that was taken
    return Model(
        config=found.config,
        parameters=models.parameter_count(found.config),
        load=lambda dtype, mesh: hf.load(uri, dtype=dtype, mesh=mesh),
        uri=uri,
        family=found.family.name,
        identity=processes.broadcast(lambda: hf.identity(found)),
        tokenizer=tokenizer or (os.fspath(own[0].parent) if own else ""),
    )


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

    >>> suite = merging.tasks.suite("miniworld", test_examples=8)
    >>> decoder = merging.models.size("tiny", "1x", vocab_size=len(suite.tokenizer))
    >>> model = (decoder, merging.models.init(decoder, seed=0))
    >>> (score,) = merging.evaluate(model, suite, datasets=["copa"])
    >>> score.dataset, score.metric, score.chance, score.examples
    ('copa', 'accuracy', 0.5, 8)

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
      workdir: where to keep every finished dataset, and to go on from; also `gs://`.

    Raises:
      UserError: a checkpoint, suite, dataset, metric or split that can't be used; a
        tokenizer that is not the model's; a batch that the mesh does not divide; a
        workdir for a model in memory.
      Preempted: the system asked to stop; what is finished is in the workdir.
    """
    model = _model(model)
    if isinstance(suite, str):
        suite = tasks.suite(suite, tokenizer=model.tokenizer)
    require_own_tokens(suite, model)
    place = None if workdir is None else storage.place(workdir, "workdir")
    if place and not model.identity:
        raise UserError(
            "a model in memory has no name to keep its scores under: save it, and "
            "evaluate the checkpoint; or leave out workdir."
        )
    context, count = context or model.config.max_length, count or None
    of_model = (model.identity, suite.digest, split, count, context, dtype or None)
    keys = {
        name: store.key(*of_model, name, metrics_of(suite, name, metrics))
        for name in dataset_names(suite, datasets or None)
    }
    kept = processes.broadcast(lambda: store.finished(place, keys)) if place else {}
    found = {name: store.parse(text) for name, text in kept.items()}
    if missing := [name for name in keys if name not in found]:
        requests = _read(
            suite,
            split,
            datasets=missing,
            count=count,
            metrics=metrics,
            references=True,
            context=context,
            vocab_size=model.config.vocab_size,
            cache_dir=tasks.kept_for_user() if place else None,
        )
        for name, record in _records(
            model, requests, missing, batch_size, dtype or None, mesh, place
        ):
            found[name] = record
            if place and processes.is_first():
                store.save(place, keys[name], record)
    if place:
        if processes.is_first():
            said = {"model": model.uri, "suite": suite.name}
            store.write_index(place, keys, said | {"versions": workdirs.versions()})
        processes.barrier("the scores are written")
    return [found[name].score for name in keys]


def _model(model: Any) -> Model:
    if isinstance(model, Model):
        return model
    if isinstance(model, str | os.PathLike):
        return open_model(model)
    config, params = model
    count = models.parameter_count(config)
    return Model(config, count, lambda dtype, mesh: (config, params))


def require_own_tokens(suite: tasks.Suite, model: Model) -> None:
    """Raise a UserError if a suite's tokens cannot be those of a model."""
    size, rows = len(suite.tokenizer), model.config.vocab_size
    if size > rows:
        where = suite.tokenizer_path or f"suite {suite.name}"
        raise UserError(
            f"the tokenizer of {where} has {size} ids, and the model's embedding "
            f"{rows} rows: they do not belong together. Name the model's own tokenizer "
            "(tokenizer)."
        )
    # A model of other words fits by accident if it has enough rows: one that was
    # trained on the suite's own has as many.
    if model.uri and not suite.tokenizer_path and size != rows:
        raise UserError(
            f"{model.uri} holds no tokenizer, and its embedding has {rows} rows, where "
            f"the words of suite {suite.name} are {size}: it was not trained on them. "
            "Name the folder of its tokenizer (tokenizer)."
        )


def _read(
    suite: tasks.Suite, split: str, *, datasets: Sequence[str], **how: Any
) -> evaluation.Requests:
    """Return the datasets' requests; arguments as `evaluation.requests`."""
    templates = sum(len(suite.evaluations(name)) for name in datasets)
    check = preemption.raise_if_asked  # each reads for itself
    with progress(templates, "reading", check=check) as shown:

        def read(one: TemplateRequests) -> None:
            shown.advance(note=one.dataset.name)
            if one.truncated:
                prompts = one.eval_set.examples
                shown.message(truncation(one.dataset.name, one.truncated, prompts))

        return evaluation.requests(suite, split, datasets=datasets, read=read, **how)


def _records(
    model: Model,
    requests: evaluation.Requests,
    datasets: Sequence[str],
    batch_size: int,
    dtype: str | None,
    mesh: Mesh | None,
    workdir: Folder | None,
) -> Iterator[tuple[str, Record]]:
    """Read the model, and yield each dataset and its record when it is finished."""
    predictor = load(model, dtype, mesh)
    first = processes.is_first()
    log = EventLog(workdir / "events.jsonl" if workdir and first else None)
    tokens = sum(one.tokens for one in requests.sets)
    with progress(tokens, "evaluating", log=log) as shown:
        for name in datasets:
            start = time.monotonic()
            (score,) = evaluation.evaluate(
                requests,
                predictor,
                datasets=[name],
                batch_size=batch_size,
                sharding=None if mesh is None else sharding.batch_sharding(mesh),
                compile_cost=compile_cost(model.parameters),
                tick=functools.partial(shown.advance, note=name),
            )
            seconds = round(time.monotonic() - start, 3)
            yield name, Record(score, seconds, git_revision())


def load(model: Model, dtype: str | None, mesh: Mesh | None) -> models.Predictor:
    """Read a model's parameters, and return its functions bound to them.

    Args:
      model: from `open_model`.
      dtype: of parameters and activations; None as stored.
      mesh: devices to split rows and parameters over; None for one.
    """
    if processes.is_first() and model.uri:
        size = shown_parameters(model.parameters)
        print(f"Reading {size} parameters of {model.uri}.", file=sys.stderr)
    config, params = model.load(dtype, mesh)
    bound = (functools.partial(call, params) for call in models.predictor(config, mesh))
    return models.Predictor(*bound)


def mesh_of(sizes: Mapping[str, int]) -> Mesh | None:
    """Return a mesh of these axes; None for one of the only device."""
    if jax.device_count() == 1 and math.prod(map(abs, sizes.values())) == 1:
        return None
    return sharding.make_mesh(sizes)


def compile_cost(parameters: int) -> float:
    """Return how many tokens a model handles in the time of a compilation, roughly."""
    flops = _COMPILATION.get(jax.default_backend())
    flops = flops or _COMPILATION_ON_ACCELERATORS * jax.device_count()
    return flops / (2 * parameters)


def raise_if_preempted() -> None:
    """End the work here if the job was asked to stop: on all processes, or on none.

    For between two batches, the same on every process, as they meet in collectives.

    Raises:
      Preempted: it was.
    """
    if processes.preempted():
        raise Preempted(preemption.reason())


def progress(
    total: float,
    label: str,
    *,
    log: EventLog | None = None,
    check: Callable[[], None] = raise_if_preempted,
) -> Progress:
    """Return what shows how far a job of all processes is: only the first one's does.

    Args:
      total, label, log: as of a `Progress`.
      check: called after each step; by default it ends the work of all processes after
        the same batch if one was asked to stop.
    """
    stream = None if processes.is_first() else io.StringIO()
    return Progress(total, label, stream=stream, log=log, check=check)
