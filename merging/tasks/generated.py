"""Suites whose texts a module makes up, such as the miniworld's."""

import dataclasses
import functools
import importlib
import types
from pathlib import Path
from typing import Any

from merging.runtime.errors import UserError
from merging.tasks.errors import require_none
from merging.tasks.suites import SPLITS, Dataset, SuiteSource, file_digests
from merging.tasks.words import Words


@dataclasses.dataclass(frozen=True)
class Generated(SuiteSource):
    """One world of a generating module, and how much of it (a `SuiteSource`).

    Attributes:
      module: dotted name of the generator, which has ``VOCABULARY`` (a word list),
        ``MAX_LENGTH``, ``DATASETS``, ``examples(dataset, split, world_seed, count)``,
        ``documents(world_seed, count)`` and ``instructions(world_seed, count)``.
      world_seed: the world that everything is drawn from.
      train_examples, validation_examples, test_examples: per dataset.
      documents, instructions: training texts of the two bases; each has
        ``validation_examples`` more for validation.

    Raises:
      UserError: a count below 1, or a seed below 0.
    """

    module: str
    world_seed: int = 0
    train_examples: int = 4096
    validation_examples: int = 256
    test_examples: int = 256
    documents: int = 32768
    instructions: int = 32768

    truncates = False
    corpora = ("pretrain", "instruct")

    def __post_init__(self):
        counts = {k: v for k, v in self.settings.items() if k != "world_seed"}
        name = self.module.rpartition(".")[2]
        if wrong := [f"{k}={v!r}" for k, v in counts.items() if v < 1]:
            raise UserError(f"suite {name!r} needs 1 or more: {', '.join(wrong)}.")
        if self.world_seed < 0:
            raise UserError(
                f"suite {name!r} needs 0 or more: world_seed={self.world_seed!r}."
            )

    @property
    def label(self) -> str:
        """What tells this world's seqio names from another's."""
        return str(self.world_seed)

    @property
    def settings(self) -> dict[str, int]:
        """The numbers that were chosen, by name."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if name != "module"}

    @property
    def generator(self) -> types.ModuleType:
        """The module behind the suite."""
        return importlib.import_module(self.module)

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        """Every dataset, in the module's order."""
        return tuple(self.generator.DATASETS)

    @functools.cached_property
    def tokenizer(self) -> Words:
        """The closed vocabulary that all texts are written in."""
        return Words(tuple(self.generator.VOCABULARY))

    @property
    def max_length(self) -> int:
        """Tokens of the longest example."""
        return self.generator.MAX_LENGTH

    @property
    def identity(self) -> list[Any]:
        """The settings and the generating code."""
        file = Path(self.generator.__file__)
        package = file.name == "__init__.py"
        files = sorted(file.parent.glob("*.py")) if package else [file]
        return [self.settings, file_digests(files)]

    def examples(self, split: str) -> int:
        """Return how many examples of each dataset a split has."""
        return self.settings[f"{split}_examples"]

    def data_source(self, what: str) -> Any:
        """Return a dataset's or a corpus' texts as a seqio source.

        Raises:
          UserError: when it is read: words that are not in the vocabulary, an example
            with less than two choices or no right one.
        """
        from merging.tasks.texts import text_source

        if what in self.corpora:
            counts = {
                "train": self.documents if what == "pretrain" else self.instructions,
                "validation": self.validation_examples,
            }
            return text_source(functools.partial(self._corpus, what, counts), counts)
        counts = {split: self.examples(split) for split in SPLITS}
        return text_source(functools.partial(self._examples, what), counts)

    def _examples(self, dataset: str, split: str) -> list[dict]:
        count = self.examples(split)
        rows = self.generator.examples(dataset, split, self.world_seed, count)
        ranked = {d.name: d.metric for d in self.datasets}[dataset] == "accuracy"
        errors = self._spelling(rows) + (_choice_errors(rows) if ranked else [])
        require_none(errors, f"{dataset} ({split})")
        return rows

    def _corpus(self, what: str, counts: dict[str, int], split: str) -> list[dict]:
        # Validation is what follows the training texts in the same stream.
        total = sum(counts.values())
        if what == "pretrain":
            texts = self.generator.documents(self.world_seed, total)
            rows = [{"inputs": "", "targets": text} for text in texts]
        else:
            rows = self.generator.instructions(self.world_seed, total)
        require_none(self._spelling(rows), what)
        edge = counts["train"]
        return rows[:edge] if split == "train" else rows[edge:]

    def _spelling(self, rows: list[dict]) -> list[str]:
        errors = []
        for i, row in enumerate(rows):
            texts = [row["inputs"], row["targets"], *row.get("choices", ())]
            for word in dict.fromkeys(w for _, w in self.tokenizer.unknown(texts)):
                errors.append(
                    f"example {i}: the word {word!r} is not in the vocabulary"
                )
        return errors


def _choice_errors(rows: list[dict]) -> list[str]:
    errors = []
    for i, row in enumerate(rows):
        n = len(row["choices"])
        if n < 2:
            errors.append(f"example {i}: {n} choices, a rank task needs 2 or more")
        elif not 0 <= row["label"] < n:
            errors.append(f"example {i}: label {row['label']} of {n} choices")
    return errors
