"""Where a search's models are merged and scored: here, or in a few processes."""

import ctypes
import dataclasses
import functools
import multiprocessing
import os
import signal
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from pathlib import Path
from typing import Any

from merging import methods, models, tasks
from merging.evaluation import DatasetScore, Requests, bootstrap
from merging.evaluation.job import Model, open_model, require_own_tokens
from merging.runtime.errors import UserError
from merging.runtime.revision import git_revision
from merging.sweep import resident
from merging.sweep.pool import on_accelerator, one_thread, share_compilations
from merging.sweep.resident import Resident
from merging.sweep.space import Recipe


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is merged, what scores it, and how.

    Attributes:
      base: its checkpoint; None where there is none.
      experts: {name: checkpoint}.
      method_file: a file that registers methods of one's own; None for none.
      suite: its name.
      suite_settings: as `tasks.suite` takes them.
      tokenizer: folder of the models' tokenizer; "" for their own.
      datasets: that are scored; () for the suite's held-in ones.
      counts: {split: the first examples of each dataset}; 0 for all.
      batch_size: rows of a call.
      seed: of random masks.
      bootstrap: of the intervals on the test split.
      merge: whether to write the best trial's checkpoint.
      folder: the workdir.
    """

    base: str | None
    experts: dict[str, str]
    method_file: str | None
    suite: str
    suite_settings: dict[str, Any]
    tokenizer: str
    datasets: tuple[str, ...]
    counts: dict[str, int]
    batch_size: int
    seed: int
    bootstrap: bootstrap.Options
    merge: bool
    folder: Path

    def model(self, of: Resident) -> Model:
        """Return what is known of the model that has the say, such as its tokenizer."""
        return open_model(of.inputs.first.uri, self.tokenizer)

    def suite_arguments(self, of: Resident) -> dict[str, Any]:
        """Return what `tasks.suite` is to be called with."""
        given = dict(self.suite_settings)
        if "only" in given:  # what is not asked for need not be there
            given["only"] = given["only"] or self.datasets
        return given | {"tokenizer": self.model(of).tokenizer}

    def with_datasets(self, of: Resident) -> "Settings":
        """Return them with the names of the datasets, in the suite's order.

        Raises:
          UserError: an unknown suite or dataset, or another model's tokens.
        """
        suite = tasks.suite(self.suite, **self.suite_arguments(of))
        require_own_tokens(suite, self.model(of))
        every = [d.name for d in suite.datasets if d.split == "held_in"]
        for name in self.datasets:
            suite.dataset(name)  # or an error that names the nearest
        return dataclasses.replace(self, datasets=self.datasets or tuple(every))


class Scorer:
    """Merges and scores, with the models in memory.

    Args:
      settings: of the search.
      held: the models, if they are held already.
    """

    def __init__(self, settings: Settings, held: Resident | None = None):
        if settings.method_file:
            methods.load_file(settings.method_file)
        self._settings = settings
        self._models = held or Resident(settings.base, settings.experts)
        self._asked: dict[str, Requests] = {}

    def model(self, name: str | None) -> dict[str, Any]:
        """Return the line of an expert, or of the base (None), on validation."""
        return {"model": name} | self._line(functools.partial(self._models.model, name))

    def merge(self, recipe: Recipe) -> dict[str, Any]:
        """Return the line of a merge on validation."""
        line = self._line(lambda: self._models.merged(recipe, self._settings.seed))
        return line | {"method": recipe.method, "rules": list(recipe.rules)}

    def scores(self, params: models.Params, split: str) -> list[DatasetScore]:
        """Return what parameters score on a split."""
        decoder, size = self._models.decoder, self._settings.batch_size
        return resident.score(decoder, params, self._requests(split), size)

    def _line(self, params: Any) -> dict[str, Any]:
        begin = time.monotonic()
        found = {s.dataset: s.value for s in self.scores(params(), "validation")}
        seconds = round(time.monotonic() - begin, 3)
        return {"datasets": found, "seconds": seconds, "git_revision": git_revision()}

    def _requests(self, split: str) -> Requests:
        if split not in self._asked:
            settings, held = self._settings, self._models
            suite = tasks.suite(settings.suite, **settings.suite_arguments(held))
            self._asked[split] = resident.ask(
                *(suite, split, settings.datasets, settings.counts[split]),
                *(held.decoder, settings.folder / "data"),
            )
        return self._asked[split]


class Scorers:
    """A scorer in this process, or one in each of several, whose lines keep the order.

    Args:
      settings: of the search.
      held: the models, for the scorer of this process.
      workers: processes, each with one thread on CPUs and a copy of the models; 1 is
        this process with all its threads or devices, 0 a process for each core.
    """

    def __init__(self, settings: Settings, held: Resident, workers: int):
        self._settings, self._held = settings, held
        self._workers = workers or len(os.sched_getaffinity(0))

    def __enter__(self) -> "Scorers":
        share_compilations(self._settings.folder)
        self._pool = None
        if self._workers == 1:
            self._scorer = Scorer(self._settings, self._held)
            return self
        variables = {} if on_accelerator() else one_thread()
        self._pool = ProcessPoolExecutor(
            self._workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start,
            initargs=(self._settings, os.getpid(), variables),
        )
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)
        if isinstance(error, BrokenExecutor):
            raise UserError(
                "a worker process died. Most often memory ran out: run fewer at a time,"
                " say --config.workers=1. Finished trials are kept."
            ) from error

    def models(self, names: Iterable[str | None]) -> Iterator[dict[str, Any]]:
        """Yield the lines of experts, and of the base for None."""
        if self._pool is None:
            return map(self._scorer.model, names)
        return self._pool.map(_model, names)

    def merges(self, recipes: Iterable[Recipe]) -> Iterator[dict[str, Any]]:
        """Yield the lines of merges."""
        if self._pool is None:
            return map(self._scorer.merge, recipes)
        return self._pool.map(_merge, recipes)


_here: list[Scorer] = []


def _start(settings: Settings, parent: int, variables: dict[str, str]) -> None:
    # If the parent is killed outright, it must not go on alone (PR_SET_PDEATHSIG);
    # Ctrl-C and SIGTERM are the parent's to answer.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.environ.update(variables)
    _here.append(Scorer(settings))


def _model(name: str | None) -> dict[str, Any]:
    return _here[0].model(name)


def _merge(recipe: Recipe) -> dict[str, Any]:
    return _here[0].merge(recipe)
