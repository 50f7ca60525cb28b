"""T0's datasets, through seqio and TFDS, under prompts of our own.

Sixteen held-in datasets in eight categories and seven held-out ones in four (Sanh et
al. 2022, arXiv 2110.08207; the choice is that of Yadav et al. 2024, arXiv 2410.03617).
``tables`` knows them, ``sources`` finds and reads their data, ``rendering`` makes text
of a record, ``preparing`` fetches what a network allows.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merging.runtime.errors import UserError
from merging.tasks.suites import SuiteSource
from merging.tasks.t0 import sources, tables
from merging.tasks.t0.entries import Entry
from merging.tasks.t0.sources import Located

__all__ = ["T0"]

# Sanh et al. 2022, section 4: no dataset may drown the others.
MOST_EXAMPLES = 500_000


@dataclass(frozen=True)
class T0(SuiteSource):
    """T0's datasets in a data directory (a `SuiteSource`).

    Attributes:
      data_dir: with the datasets, as ``merging tasks prepare`` leaves it.
      only: names of the datasets to use; () for all 23. One may stand by itself.

    Raises:
      UserError: no such directory, an unknown name, or datasets that are not ready, all
        of which are named.
    """

    data_dir: str = ""
    only: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.data_dir:
            raise UserError("suite 't0' needs data_dir, the directory of its datasets.")
        only = (self.only,) if isinstance(self.only, str) else tuple(self.only)
        object.__setattr__(self, "only", only)
        problems = [
            f"  {name}: {located.problem}"
            for name, located in self._located.items()
            if located.problem
        ]
        if problems:
            raise UserError(
                f"{len(problems)} datasets of suite 't0' are not ready:\n"
                + "\n".join(problems)
                + "\nFetch them with `merging tasks prepare --suite t0 --data_dir "
                f"{self.data_dir}`, or name those to use in `only`."
            )

    @functools.cached_property
    def identity(self) -> dict[str, list[str]]:
        """The datasets, with a hash of the table and of the data of each."""
        return {
            name: [tables.digest(name), sources.fingerprint(found)]
            for name, found in self._located.items()
        }

    @property
    def datasets(self) -> tuple[Entry, ...]:
        """The datasets that are used, held-in ones first."""
        return tuple(tables.entry(name) for name in self._located)

    def prompts(self, dataset: str) -> tuple[str, ...]:
        """Return the names of a dataset's prompt templates."""
        return tuple(tables.entry(dataset).prompts)

    def rate(self, dataset: str, prompt: str) -> float:
        """Return the weight of a dataset under one prompt template in a mixture.

        Its number of training examples, or 500,000 shared among its prompt templates if
        that is less.
        """
        entry = tables.entry(dataset)
        size = sources.size(entry, self._located[dataset], "train")
        return min(float(size), MOST_EXAMPLES / len(entry.prompts))

    def data_source(self, what: str) -> Any:
        """Return a dataset's records as a seqio source; it never downloads.

        Raises:
          UserError: when it is read: errors in lines of a file, with their numbers.
        """
        from merging.tasks.t0.pipeline import record_source

        return record_source(tables.entry(what), self._located[what])

    def render(self, dataset: str, prompt: str) -> Sequence[Callable]:
        """Return the preprocessor that makes text examples of records."""
        from merging.tasks.t0.pipeline import rendered

        entry = tables.entry(dataset)
        return (functools.partial(rendered, entry=entry, prompt=entry.prompt(prompt)),)

    @functools.cached_property
    def _located(self) -> dict[str, Located]:
        chosen = [tables.entry(name).name for name in self.only] or tables.names()
        folder = Path(self.data_dir)
        return {
            name: sources.locate(tables.entry(name), folder)
            for name in tables.names()
            if name in chosen
        }
