"""What a suite is, and the suites by name; nothing here imports TensorFlow."""

import dataclasses
import functools
import hashlib
import importlib
import types
from pathlib import Path
from typing import Protocol

from merging.errors import UserError, nearest
from merging.tasks import cache
from merging.tasks.metrics import METRICS
from merging.tasks.words import Words

_SOURCES = {"miniworld": "merging.tasks.miniworld"}
_WHOLE = ("pretrain", "instruct", "multitask")
SPLITS = ("train", "validation", "test")


class Dataset(Protocol):
    """A dataset's facts, as a suite's module states them.

    Attributes:
      name: unique within the suite.
      category: a held-in category trains one expert.
      split: "held_in" or "held_out".
      metric: "accuracy" (rank classification), "exact_match", "f1" or "rouge_l".
      chance: the metric's value for a guess, in 0..1.
    """

    name: str
    category: str
    split: str
    metric: str
    chance: float


@dataclasses.dataclass(frozen=True)
class Suite:
    """Datasets of one world, and how much of each; equal when it gives the same data.

    Attributes:
      name: the suite's name, the first part of its seqio names.
      source: dotted name of the module behind it, which has ``VOCABULARY`` (a word
        list), ``DATASETS``, ``examples(dataset, split, world_seed, count)``,
        ``documents(world_seed, count)`` and ``instructions(world_seed, count)``.
      world_seed: the world that everything is drawn from.
      train_examples, validation_examples, test_examples: per dataset.
      documents, instructions: training texts of the two bases; each has
        ``validation_examples`` more for validation.

    Raises:
      UserError: a count below 1.
      ValueError: the module's datasets contradict each other.
    """

    name: str
    source: str
    world_seed: int = 0
    train_examples: int = 4096
    validation_examples: int = 256
    test_examples: int = 256
    documents: int = 32768
    instructions: int = 32768

    def __post_init__(self):
        counts = {k: v for k, v in self.settings.items() if k != "world_seed"}
        wrong = [f"{k}={v!r}" for k, v in counts.items() if v < 1]
        if wrong:
            raise UserError(f"suite {self.name!r} needs 1 or more: {', '.join(wrong)}")
        _require_consistent(self)

    @property
    def settings(self) -> dict[str, int]:
        """The numbers that were chosen, by name."""
        fields = [f.name for f in dataclasses.fields(self)][2:]
        return {name: getattr(self, name) for name in fields}

    @property
    def module(self) -> types.ModuleType:
        """The module behind the suite."""
        return importlib.import_module(self.source)

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        """Every dataset, in the module's order."""
        return tuple(self.module.DATASETS)

    @property
    def categories(self) -> tuple[str, ...]:
        """The held-in categories, one expert each, in order of appearance."""
        held_in = (d.category for d in self.datasets if d.split == "held_in")
        return tuple(dict.fromkeys(held_in))

    @property
    def prefix(self) -> str:
        """The start of the suite's names in seqio."""
        return f"{self.name}_{self.world_seed}"

    @functools.cached_property
    def words(self) -> Words:
        """The vocabulary."""
        return Words(tuple(self.module.VOCABULARY))

    @functools.cached_property
    def digest(self) -> str:
        """A hash of all that the data depends on: settings and generating code."""
        file, ours = Path(self.module.__file__), Path(__file__).parent
        generating = file.parent.glob("*.py") if _package(file) else [file]
        sources = [*sorted(generating), *sorted(ours.glob("*.py"))]
        hashes = [hashlib.sha256(p.read_bytes()).hexdigest() for p in sources]
        return cache.key(self.name, self.settings, hashes)

    def dataset(self, name: str) -> Dataset:
        """Return a dataset by name; UserError with the nearest names otherwise."""
        by_name = {d.name: d for d in self.datasets}
        if name not in by_name:
            raise nearest("dataset", name, by_name)
        return by_name[name]

    def examples(self, split: str) -> int:
        """Return how many examples of each dataset a split has."""
        if split not in SPLITS:
            raise nearest("split", split, SPLITS)
        return self.settings[f"{split}_examples"]

    def training(self, what: str) -> str:
        """Return the seqio name of "pretrain", "instruct", "multitask", a category or
        a dataset; UserError with the nearest names otherwise."""
        names = {d.name: f"{self.prefix}_{d.name}" for d in self.datasets}
        names |= {c: f"{self.prefix}_category_{c}" for c in self.categories}
        names |= {w: f"{self.prefix}_{w}" for w in _WHOLE}
        if what not in names:
            raise nearest("training data", what, names)
        return names[what]

    def members(self, what: str) -> tuple[str, ...]:
        """Return the datasets that a category or "multitask" mixes; () for the rest."""
        held_in = [d for d in self.datasets if d.split == "held_in"]
        return tuple(d.name for d in held_in if what in (d.category, "multitask"))

    def evaluation(self, dataset: str) -> str:
        """Return the name of the seqio Task that evaluates a dataset."""
        ranked = self.dataset(dataset).metric == "accuracy"
        return f"{self.prefix}_{dataset}" + ("_score_eval" if ranked else "")


def suite(name: str, **settings: int) -> Suite:
    """Return a suite by name.

    Args:
      name: one of ``names()``.
      **settings: the numbers of ``Suite``.

    Raises:
      UserError: an unknown suite or setting, with the nearest names.
    """
    if name not in _SOURCES:
        raise nearest("suite", name, _SOURCES)
    valid = [f.name for f in dataclasses.fields(Suite)][2:]
    for setting in settings:
        if setting not in valid:
            raise nearest(f"setting of suite {name}", setting, valid)
    return Suite(name, _SOURCES[name], **settings)


def names() -> tuple[str, ...]:
    """Return the names of the suites."""
    return tuple(_SOURCES)


def _package(file: Path) -> bool:
    return file.name == "__init__.py"


def _require_consistent(suite: Suite) -> None:
    faults = []
    taken = [*_WHOLE, *(d.name for d in suite.datasets)]
    taken += {d.category for d in suite.datasets}
    faults += [f"{n!r} is used twice" for n in sorted(set(taken)) if taken.count(n) > 1]
    for d in suite.datasets:
        if d.split not in ("held_in", "held_out"):
            faults.append(f"{d.name}: split {d.split!r}")
        if d.metric not in METRICS:
            faults.append(f"{d.name}: metric {d.metric!r}")
        if not 0 <= d.chance < 1:
            faults.append(f"{d.name}: chance {d.chance!r}")
    if faults:
        raise ValueError(f"suite {suite.name!r}: {'; '.join(faults)}")
