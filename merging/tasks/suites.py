"""What a suite is; nothing here imports TensorFlow."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from merging.runtime import storage
from merging.runtime.errors import UserError, nearest
from merging.tasks.metrics import METRICS
from merging.tasks.tokenizers import Tokenizer, open_tokenizer

# Part of every suite's digest. Raise it when code outside a generator changes what
# comes out of the same texts: how records become prompts and choices, how these become
# ids, what evaluation rows and training examples hold. An edit that changes none of it
# needs nothing, and redoes nothing.
VERSION = 1
SPLITS = ("train", "validation", "test")
_WHOLE = ("pretrain", "instruct", "multitask")
# Tokens of a model's own vocabulary that a word of a closed one takes, at most.
_TOKENS_PER_WORD = 4


class Dataset(NamedTuple):
    """A dataset's facts.

    Attributes:
      name: unique within the suite.
      category: a held-in category trains one expert.
      split: "held_in" or "held_out".
      metric: of `METRICS`; "accuracy" and its kin make it a rank classification.
      chance: the metric's value for a guess, in 0..1.
    """

    name: str
    category: str
    split: str
    metric: str
    chance: float


class Generation(NamedTuple):
    """How far a generated text goes.

    Attributes:
      stop: texts of which the first to appear ends it, and is no part of it.
      max_new_tokens: at most; 0 for what the longest reference takes.
    """

    stop: tuple[str, ...] = ()
    max_new_tokens: int = 0


class SuiteSource(Protocol):
    """Where a suite's texts come from; equal when they are the same.

    Attributes:
      identity: JSON values that change whenever the texts do.
      datasets: every dataset (`Dataset`, or records with its fields), in order.
      label: what tells its seqio names from those of another of the same suite.
      corpora: "pretrain" and "instruct", or none of them.
      tokenizer: the vocabulary its texts are written in; None: any will do.
      max_length: tokens of its longest example; None if nobody knows.
      truncates: whether longer examples are cut from the left, and not an error.
    """

    identity: Any
    datasets: tuple[Any, ...]
    label: str = ""
    corpora: tuple[str, ...] = ()
    tokenizer: Tokenizer | None = None
    max_length: int | None = None
    truncates: bool = True

    def examples(self, split: str) -> int | None:
        """Return how many examples a dataset has in a split; None: it varies."""
        return None

    def prompts(self, dataset: str) -> tuple[str, ...]:
        """Return the names of its prompt templates; ("",): its texts are prompts."""
        return ("",)

    def rate(self, dataset: str, prompt: str) -> float:
        """Return the weight of a dataset under one prompt template in a mixture."""
        return 1.0

    def generation(self, dataset: str) -> Generation:
        """Return how far a dataset's texts are generated."""
        return Generation()

    def data_source(self, what: str) -> Any:
        """Return the seqio source of a dataset's or corpus' records."""

    def render(self, dataset: str, prompt: str) -> Sequence[Callable]:
        """Return the preprocessors that make text examples of the records, if any."""
        return ()


@dataclasses.dataclass(frozen=True)
class Suite:
    """Datasets and training data, in one model's tokens; equal when they are the same.

    Attributes:
      name: the suite's name, the first part of its seqio names.
      source: its texts.
      tokenizer_path: of a model's own tokenizer (see `open_tokenizer`); "" for the
        source's vocabulary.
      chat: prompts go through the tokenizer's chat template.
      longest: tokens of the longest sequence, prompt, answer and end mark together; 0
        for what the source says.
      only: the categories, held-in and held-out, to do with; () for all.

    Raises:
      UserError: the source needs a tokenizer, or has no template; a category that
        it doesn't have.
      ValueError: the datasets contradict each other.
    """

    name: str
    source: SuiteSource
    tokenizer_path: str = ""
    chat: bool = False
    longest: int = 0
    only: tuple[str, ...] = ()

    def __post_init__(self):
        known = {d.category for d in self.source.datasets}
        for category in self.only:
            if category not in known:
                raise nearest(f"category of suite {self.name}", category, known)
        if not self.tokenizer_path and (self.chat or self.source.tokenizer is None):
            raise UserError(
                f"suite {self.name!r} needs a model's tokenizer: give the folder with "
                "its tokenizer.json or *.model as tokenizer."
            )
        _require_consistent(self)

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        """Every dataset that is to do with, in the source's order."""
        every = self.source.datasets
        return tuple(d for d in every if not self.only or d.category in self.only)

    @property
    def categories(self) -> tuple[str, ...]:
        """The held-in categories, one expert each, in order of appearance."""
        held_in = (d.category for d in self.datasets if d.split == "held_in")
        return tuple(dict.fromkeys(held_in))

    @property
    def prefix(self) -> str:
        """The start of the suite's names in seqio."""
        return "_".join(filter(None, [self.name, self.source.label]))

    @property
    def tokenizer(self) -> Tokenizer:
        """What makes ids of its texts."""
        if self.tokenizer_path:
            return open_tokenizer(self.tokenizer_path, self.chat)
        return self.source.tokenizer

    @property
    def max_length(self) -> int:
        """Tokens that prompt, answer and end mark may have together."""
        known = self.source.max_length or 1024
        factor = _TOKENS_PER_WORD if self.tokenizer_path else 1
        return self.longest or known * (factor if self.source.max_length else 1)

    @functools.cached_property
    def digest(self) -> str:
        """A hash of all that the data depends on: texts, settings, tokenizer.

        Of code, it takes in a generator's own and otherwise `VERSION` alone.
        """
        parts = (self.name, self.source.identity, self.longest, self.only)
        return storage.digest(VERSION, *parts, self.tokenizer.digest)

    def dataset(self, name: str) -> Dataset:
        """Return a dataset by name; UserError with the nearest names otherwise."""
        by_name = {d.name: d for d in self.datasets}
        if name not in by_name:
            raise nearest("dataset", name, by_name)
        return by_name[name]

    def examples(self, split: str) -> int | None:
        """Return how many examples each dataset has in a split; None: it varies.

        Raises:
          UserError: an unknown split.
        """
        if split not in SPLITS:
            raise nearest("split", split, SPLITS)
        return self.source.examples(split)

    def training(self, what: str) -> str:
        """Return the seqio name of a corpus, "multitask", a category or a dataset;
        UserError with the nearest names otherwise."""
        names = {d.name: f"{self.prefix}_{d.name}" for d in self.datasets}
        names |= {c: f"{self.prefix}_category_{c}" for c in self.categories}
        whole = (*self.source.corpora, "multitask")
        names |= {w: f"{self.prefix}_{w}" for w in whole}
        if what not in names:
            raise nearest("training data", what, names)
        return names[what]

    def members(self, what: str) -> tuple[str, ...]:
        """Return the datasets that a category or "multitask" mixes; () for the rest."""
        held_in = [d for d in self.datasets if d.split == "held_in"]
        return tuple(d.name for d in held_in if what in (d.category, "multitask"))

    def mixture(self, what: str) -> dict[str, float]:
        """Return the seqio Tasks that training data is mixed of, and their rates.

        Raises:
          UserError: an unknown name; "multitask" of a suite to evaluate only.
        """
        self.training(what)
        if what in self.source.corpora:
            return {self.training(what): 1.0}
        datasets = self.members(what)
        if not datasets and what == "multitask":
            raise UserError(f"suite {self.name!r} has no held-in dataset to train on.")
        return {
            self.task(dataset, prompt): self.source.rate(dataset, prompt)
            for dataset in datasets or (what,)
            for prompt in self.source.prompts(dataset)
        }

    def evaluations(self, dataset: str) -> dict[str, str]:
        """Return {prompt template: the seqio Task that evaluates a dataset in it}."""
        end = "_score_eval" if ranked(self.dataset(dataset)) else ""
        return {
            prompt: self.task(dataset, prompt) + end
            for prompt in self.source.prompts(dataset)
        }

    def task(self, dataset: str, prompt: str) -> str:
        """Return the name of the seqio Task of a dataset's prompts and answers."""
        return "_".join(filter(None, [self.prefix, dataset, prompt]))


def ranked(dataset: Any) -> bool:
    """Return whether a dataset is a rank classification."""
    return METRICS[dataset.metric].ranked


def file_digests(paths: Iterable[Path]) -> list[str]:
    """Return the SHA-256 of each file's bytes."""
    found = []
    for path in paths:
        with path.open("rb") as file:
            found.append(hashlib.file_digest(file, "sha256").hexdigest())
    return found


def _require_consistent(suite: Suite) -> None:
    errors = []
    taken = [*_WHOLE, *(d.name for d in suite.datasets)]
    taken += {d.category for d in suite.datasets}
    errors += [f"{n!r} is used twice" for n in sorted(set(taken)) if taken.count(n) > 1]
    for d in suite.datasets:
        if d.split not in ("held_in", "held_out"):
            errors.append(f"{d.name}: split {d.split!r}")
        if d.metric not in METRICS:
            errors.append(f"{d.name}: metric {d.metric!r}")
        if not 0 <= d.chance < 1:
            errors.append(f"{d.name}: chance {d.chance!r}")
    if errors:
        raise ValueError(f"suite {suite.name!r}: {'; '.join(errors)}")
