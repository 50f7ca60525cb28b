"""Where a search's models are merged and scored: by the runners of a sweep.

`inline`, in this process and any others of its job, on the mesh of all their devices;
`local`, in processes of one thread; `ray`, in those of a cluster, on all devices that
each is given. Every worker holds the base and the experts.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from merging import methods, tasks
from merging.evaluation import DatasetScore, Requests, bootstrap, job
from merging.methods import Statistics
from merging.runtime import sharding
from merging.runtime.revision import git_revision
from merging.sweep import on_ray, pool, resident
from merging.sweep.pool import share_compilations
from merging.sweep.resident import Resident
from merging.sweep.space import Recipe

Model = str | None | Recipe  # an expert's name, None for the base, or a merge


class Where(NamedTuple):
    """Which runner scores a search's models.

    Attributes:
      runner: "inline", "local" or "ray".
      workers: of the other two, at most.
      resources: {name: number} that a worker takes of a Ray node.
    """

    runner: str
    workers: int
    resources: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is merged, what scores it, and how.

    Attributes:
      base: its checkpoint; None where there is none.
      experts: {name: checkpoint}.
      statistics: {kind: {expert's name: folder}}, if the method merges by some.
      method_file: a file that registers methods of one's own; None for none.
      suite: its name.
      suite_settings: as `tasks.suite` takes them.
      tokenizer: folder of the models' tokenizer; "" for their own.
      datasets: that are scored; () for the suite's held-in ones.
      counts: {split: the first examples of each dataset}; 0 for all.
      batch_size: rows of a call; 0: as many as suit the datasets.
      mesh: {axis: size} of the devices that a scorer has; one may be -1.
      seed: of random masks.
      bootstrap: of the intervals on the test split.
      merge: whether to write the best trial's checkpoint.
      folder: the workdir.
    """

    base: str | None
    experts: dict[str, str]
    statistics: dict[Statistics, dict[str, str]]
    method_file: str | None
    suite: str
    suite_settings: dict[str, Any]
    tokenizer: str
    datasets: tuple[str, ...]
    counts: dict[str, int]
    batch_size: int
    mesh: dict[str, int]
    seed: int
    bootstrap: bootstrap.Options
    merge: bool
    folder: Path

    @property
    def expert_statistics(self) -> dict[str, str]:
        """{expert's name: folder of its statistics}, as `merging merge` takes them."""
        return {n: uri for told in self.statistics.values() for n, uri in told.items()}

    def model(self, of: Resident) -> job.Model:
        """Return what is known of the model that has the say, such as its tokenizer."""
        return job.open_model(of.inputs.first.uri, self.tokenizer)

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
        job.require_own_tokens(suite, self.model(of))
        every = [d.name for d in suite.datasets if d.split == "held_in"]
        for name in self.datasets:
            suite.dataset(name)  # or an error that names the nearest
        return dataclasses.replace(self, datasets=self.datasets or tuple(every))


class Scorer:
    """Merges and scores, with the models in memory.

    Args:
      settings: of the search.
      held: the models.
    """

    def __init__(self, settings: Settings, held: Resident):
        if settings.method_file:
            methods.load_file(settings.method_file)
        self._settings, self._models = settings, held
        self._asked: dict[str, Requests] = {}

    def line(self, of: Model) -> dict[str, Any]:
        """Return what a model or a merge has on validation, as it is kept."""
        begin = time.monotonic()
        found = {s.dataset: s.value for s in self._scores(of, "validation")}
        seconds = round(time.monotonic() - begin, 3)
        line = {"datasets": found, "seconds": seconds, "git_revision": git_revision()}
        if isinstance(of, Recipe):
            return line | {"method": of.method, "rules": list(of.rules)}
        return {"model": of} | line

    def tested(self, of: Model) -> list[DatasetScore]:
        """Return what a model or a merge scores on the test split."""
        return self._scores(of, "test")

    def _scores(self, of: Model, split: str) -> list[DatasetScore]:
        settings, held = self._settings, self._models
        if split not in self._asked:
            suite = tasks.suite(settings.suite, **settings.suite_arguments(held))
            self._asked[split] = resident.ask(
                *(suite, split, settings.datasets, settings.counts[split]),
                *(held.decoder, settings.folder / "data"),
            )
        if isinstance(of, Recipe):
            params = held.merged(of, settings.seed)
        else:
            params = held.model(of)
        asked, size = self._asked[split], settings.batch_size
        return resident.score(held.decoder, params, asked, size, held.mesh)


class Scorers(NamedTuple):
    """Scorers by some runner; their answers come in the order of asking.

    Attributes:
      map: ``(method of a Scorer, arguments) -> answers``.
    """

    map: Callable[[str, Iterable[Model]], Iterator[Any]]

    def lines(self, asked: Iterable[Model]) -> Iterator[dict[str, Any]]:
        """Yield the lines of models and merges on validation."""
        return self.map("line", asked)

    def tested(self, asked: Iterable[Model]) -> Iterator[list[DatasetScore]]:
        """Yield what models and merges score on the test split."""
        return self.map("tested", asked)


@contextlib.contextmanager
def opened(settings: Settings, held: Resident, where: Where) -> Iterator[Scorers]:
    """Have scorers until the context ends.

    Args:
      settings: of the search.
      held: the models, for the runner inline; other workers hold their own.
      where: the runner.
    """
    share_compilations(settings.folder)
    if where.runner == "inline":
        here = Scorer(settings, held)
        yield Scorers(lambda method, asked: map(getattr(here, method), asked))
        return
    if where.runner == "local":
        make = functools.partial(_alone, settings, False)
        actors = pool.Actors(make, where.workers)
    else:
        make = functools.partial(_alone, settings, True)
        actors = on_ray.Actors(make, where.resources, where.workers)
    with actors:
        yield Scorers(actors.map)


def _alone(settings: Settings, meshed: bool) -> Scorer:
    """Return a worker's own scorer, on all its devices or the first."""
    share_compilations(settings.folder)
    mesh = job.mesh_of(settings.mesh) if meshed else None
    sharding.rows_here(mesh, settings.batch_size)
    held = Resident(settings.base, settings.experts, mesh, settings.statistics)
    return Scorer(settings, held)
