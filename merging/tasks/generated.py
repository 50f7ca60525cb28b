"""Suites whose texts a module makes up, such as the miniworld's."""

import dataclasses
import functools
import importlib
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from merging.runtime.errors import UserError, nearest
from merging.tasks.faults import require_none
from merging.tasks.suites import SPLITS, Dataset
from merging.tasks.words import Words


@dataclasses.dataclass(frozen=True)
class Generated:
    """One world of a generating module, and how much of it (a `Material`).

    Attributes:
      source: dotted name of the module, which has ``VOCABULARY`` (a word list),
        ``MAX_LENGTH``, ``DATASETS``, ``examples(dataset, split, world_seed, count)``,
        ``documents(world_seed, count)`` and ``instructions(world_seed, count)``.
      world_seed: the world that everything is drawn from.
      train_examples, validation_examples, test_examples: per dataset.
      documents, instructions: training texts of the two bases; each has
        ``validation_examples`` more for validation.

    Raises:
      UserError: a count below 1.
    """

    source: str
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
        if wrong := [f"{k}={v!r}" for k, v in counts.items() if v < 1]:
            module = self.source.rpartition(".")[2]
            raise UserError(f"suite {module!r} needs 1 or more: {', '.join(wrong)}")

    @property
    def label(self) -> str:
        """What tells this world's seqio names from another's."""
        return str(self.world_seed)

    @property
    def settings(self) -> dict[str, int]:
        """The numbers that were chosen, by name."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if name != "source"}

    @property
    def module(self) -> types.ModuleType:
        """The module behind the suite."""
        return importlib.import_module(self.source)

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        """Every dataset, in the module's order."""
        return tuple(self.module.DATASETS)

    @functools.cached_property
    def tokenizer(self) -> Words:
        """The closed vocabulary that all texts are written in."""
        return Words(tuple(self.module.VOCABULARY))

    @property
    def max_length(self) -> int:
        """Tokens of the longest example."""
        return self.module.MAX_LENGTH

    @property
    def files(self) -> list[Path]:
        """The generating code, which the digest covers."""
        file = Path(self.module.__file__)
        package = file.name == "__init__.py"
        return sorted(file.parent.glob("*.py")) if package else [file]

    def examples(self, split: str) -> int:
        """Return how many examples of each dataset a split has."""
        if split not in SPLITS:
            raise nearest("split", split, SPLITS)
        return self.settings[f"{split}_examples"]

    def prompts(self, dataset: str) -> tuple[str, ...]:
        """Return the one wording: the module's own."""
        return ("",)

    def rate(self, dataset: str, prompt: str) -> float:
        """Return a dataset's weight in a mixture: they all count alike."""
        return 1.0

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

    def render(self, dataset: str, prompt: str) -> Sequence[Callable]:
        """Return no preprocessors: the module's examples are texts already."""
        return ()

    def _examples(self, dataset: str, split: str) -> list[dict]:
        count = self.examples(split)
        rows = self.module.examples(dataset, split, self.world_seed, count)
        ranked = {d.name: d.metric for d in self.datasets}[dataset] == "accuracy"
        faults = self._spelling(rows) + (_choice_faults(rows) if ranked else [])
        require_none(faults, f"{dataset} ({split})")
        return rows

    def _corpus(self, what: str, counts: dict[str, int], split: str) -> list[dict]:
        # Validation is what follows the training texts in the same stream.
        total = sum(counts.values())
        if what == "pretrain":
            texts = self.module.documents(self.world_seed, total)
            rows = [{"inputs": "", "targets": text} for text in texts]
        else:
            rows = self.module.instructions(self.world_seed, total)
        require_none(self._spelling(rows), what)
        edge = counts["train"]
        return rows[:edge] if split == "train" else rows[edge:]

    def _spelling(self, rows: list[dict]) -> list[str]:
        faults = []
        for i, row in enumerate(rows):
            texts = [row["inputs"], row["targets"], *row.get("choices", ())]
            for word in dict.fromkeys(w for _, w in self.tokenizer.unknown(texts)):
                faults.append(
                    f"example {i}: the word {word!r} is not in the vocabulary"
                )
        return faults


def _choice_faults(rows: list[dict]) -> list[str]:
    faults = []
    for i, row in enumerate(rows):
        n = len(row["choices"])
        if n < 2:
            faults.append(f"example {i}: {n} choices, a rank task needs 2 or more")
        elif not 0 <= row["label"] < n:
            faults.append(f"example {i}: label {row['label']} of {n} choices")
    return faults
