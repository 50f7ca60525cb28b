"""A suite of the user's own, from files of JSON lines: no code, no conversion.

A line is an example::

    {"dataset": "tides", "category": "sea", "split": "held_in",
     "inputs": "When is high water at Lorn?", "choices": ["noon", "dusk"], "label": 0}

``choices`` with ``label`` (the number of the right one, from 0) or ``target`` (its
text) make a ranked example; ``target`` alone is to be generated. Optional, the same on
all lines of a dataset: ``metric``; and of texts ``stop``, a list of texts of which the
first to appear ends what the model says, and ``max_new_tokens``, how far it may go (as
far as the longest target).

A line may say its ``part``: "train", "validation" or "test". Of lines that do not, a
held-out dataset's are all tested on; of a held-in one's, 5 % are for testing and 5 %
for validation, by a hash of the inputs, equal inputs together. Where nothing is trained
(``train=False``) a held-in dataset's are shared out in halves.
"""

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from merging.runtime.errors import UserError
from merging.tasks import jsonlines
from merging.tasks.contamination import normalised
from merging.tasks.errors import require_none
from merging.tasks.jsonl import examples
from merging.tasks.jsonlines import Line
from merging.tasks.suites import (
    SPLITS,
    Dataset,
    Generation,
    SuiteSource,
    file_digests,
)

__all__ = ["OwnFiles"]

MOST_EXAMPLES = 500_000  # a dataset's largest weight in a mixture
_TAKEN = ("pretrain", "instruct", "multitask")
_UNTRAINED = "not trained on"
_HELD_BACK = 20  # one in so many, for validation and again for testing


class _Place(NamedTuple):
    """Where a line stands: the number of its file, and its first byte there."""

    file: int
    offset: int


@dataclass
class _Pile:
    """The lines of a dataset, as far as they were read."""

    facts: tuple[str, str, str]
    generation: Generation
    lines: int = 0
    guesses: float = 0.0
    places: dict[str, list[_Place]] = field(default_factory=dict)
    undealt: dict[str, list[_Place]] = field(default_factory=dict)


@dataclass(frozen=True)
class OwnFiles(SuiteSource):
    """Files of JSON lines (a `SuiteSource`); all lines are read and checked at once.

    Attributes:
      files: their paths; one may stand by itself.
      train: whether held-in datasets are trained on, and need lines for that.
      validation_examples, test_examples: the most of each dataset, the first ones; 0
        for all.
      identity: the files' content, whatever they are called.

    Raises:
      UserError: no files or no examples; faulty lines, with the numbers of the first; a
        dataset without examples for a part that is needed.
    """

    files: tuple[Path, ...] = ()
    train: bool = True
    validation_examples: int = 0
    test_examples: int = 0
    identity: tuple[str, ...] = field(default=(), init=False)

    def __post_init__(self):
        given = [self.files] if isinstance(self.files, (str, Path)) else self.files
        files = tuple(Path(path) for path in given if str(path))
        object.__setattr__(self, "files", files)
        for part, most in self._most.items():
            if most < 0:
                raise UserError(f"{part}_examples = {most} must be 0 (all) or more.")
        facts = [_UNTRAINED] if not self.train else []
        facts += [f"{part} {most}" for part, most in self._most.items() if most]
        object.__setattr__(self, "identity", (*_digests(files), *facts))
        if not self._piles:
            shown = ", ".join(map(str, self.files)) or "give files, of JSON lines"
            raise UserError(f"suite 'jsonl' has no examples: {shown}.")
        errors = [
            error
            for name in self._piles
            for error in _shortcomings(name, self._piles, self.train)
        ]
        require_none(errors, "jsonl", kind="suite")

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        """The datasets in the order in which the files name them."""
        return tuple(
            Dataset(name, *pile.facts, chance=pile.guesses / pile.lines)
            for name, pile in self._piles.items()
        )

    def examples(self, split: str) -> int | None:
        """Return how many examples a dataset has in a split; None: it varies."""
        counts = {len(pile.places.get(split, ())) for pile in self._piles.values()}
        counts.discard(0)  # of a held-out dataset for validation
        return counts.pop() if len(counts) == 1 else None

    def rate(self, dataset: str, prompt: str) -> float:
        """Return a dataset's weight in a mixture: its training examples, capped."""
        lines = self._piles[dataset].places.get("train", ())
        return float(min(len(lines), MOST_EXAMPLES))

    def generation(self, dataset: str) -> Generation:
        """Return how far a dataset's texts are generated."""
        return self._piles[dataset].generation

    def data_source(self, what: str) -> Any:
        """Return a dataset's examples as a seqio source."""
        from merging.tasks.texts import text_source

        places = self._piles[what].places
        counts = {split: len(places[split]) for split in SPLITS if split in places}
        return text_source(lambda split: self._read(places[split]), counts)

    @property
    def _most(self) -> dict[str, int]:
        return {"validation": self.validation_examples, "test": self.test_examples}

    @functools.cached_property
    def _piles(self) -> dict[str, _Pile]:
        piles: dict[str, _Pile] = {}

        def error(number: int, line: Line) -> str:
            place = _Place(number, line.offset)
            return examples.error(line.record) or _add(piles, line.record, place)

        jsonlines.check(self.files, error, "jsonl", kind="suite")
        for pile in piles.values():
            _deal(pile, self.train)
            for part, most in self._most.items():
                if most and part in pile.places:
                    del pile.places[part][most:]
        return piles

    def _read(self, places: Sequence[_Place]) -> list[dict[str, Any]]:
        # Else examples of these files would be kept under the name of those before.
        if _digests(self.files) != self.identity[: len(self.files)]:
            shown = ", ".join(map(str, self.files))
            raise UserError(f"{shown}: changed since they were checked; start again.")
        found = {}
        for number, path in enumerate(self.files):
            offsets = [place.offset for place in places if place.file == number]
            records = jsonlines.at(path, offsets)
            for offset, record in zip(offsets, records, strict=True):
                found[_Place(number, offset)] = examples.text_example(record)
        return [found[place] for place in places]


def _digests(files: Sequence[Path]) -> tuple[str, ...]:
    """Return the hash of each file; one that can't be read is told of elsewhere."""
    there = [(path, path.stat()) for path in files if path.is_file()]
    return tuple(_digest(path, of.st_size, of.st_mtime_ns) for path, of in there)


@functools.lru_cache(maxsize=64)
def _digest(path: Path, size: int, changed: int) -> str:
    del size, changed  # they only say when to look again
    return file_digests([path])[0]


def _add(piles: dict[str, _Pile], record: Mapping[str, Any], place: _Place) -> str:
    """Put a line with its dataset; return why it does not belong there, or ""."""
    facts = (record["category"], record["split"], examples.metric(record))
    generation = examples.generation(record)
    pile = piles.setdefault(record["dataset"], _Pile(facts, generation))
    before = ", ".join(pile.facts) + _shown(pile.generation)
    here = ", ".join(facts) + _shown(generation)
    if before != here:
        return f"{record['dataset']} was {before} until here, and now is {here}"
    pile.lines += 1
    if "choices" in record:
        pile.guesses += 1 / len(record["choices"])
    if "part" in record:
        pile.places.setdefault(record["part"], []).append(place)
    else:
        text = normalised(record["inputs"]).encode()
        key = hashlib.sha256(text).hexdigest()
        pile.undealt.setdefault(key, []).append(place)
    return ""


def _shown(generation: Generation) -> str:
    """Return what a line says of a text's end, for a message; "" if nothing."""
    said = [f"stop {list(generation.stop)}"] if generation.stop else []
    if generation.max_new_tokens:
        said.append(f"max_new_tokens {generation.max_new_tokens}")
    return "".join(f", {text}" for text in said)


def _deal(pile: _Pile, train: bool) -> None:
    """Share out the lines that state no part."""
    groups = [pile.undealt[key] for key in sorted(pile.undealt)]
    some = max(1, len(groups) // (_HELD_BACK if train else 2))
    dealt = {"test": groups}
    if pile.facts[1] == "held_in":
        held_back = groups[some : 2 * some] if train else groups[some:]
        dealt = {"test": groups[:some], "validation": held_back}
        if train:
            dealt["train"] = groups[2 * some :]
    for part, chosen in dealt.items():
        places = sorted(place for group in chosen for place in group)
        if places:
            pile.places.setdefault(part, []).extend(places)


def _shortcomings(name: str, piles: Mapping[str, _Pile], train: bool) -> Iterator[str]:
    pile = piles[name]
    taken = {other.facts[0] for other in piles.values()}.union(_TAKEN)
    if name in taken:
        yield (
            f"dataset {name} has the name of a category, or one of {', '.join(_TAKEN)}:"
            " call it otherwise"
        )
    if pile.facts[0] in _TAKEN:
        yield f"{name}: no category may be called {pile.facts[0]}"
    needed = SPLITS if train else ("validation", "test")
    for part in ("test",) if pile.facts[1] == "held_out" else needed:
        if part not in pile.places:
            unless = ", or train=False if none is trained on" * (part == "train")
            yield (
                f"{name}: none of its {pile.lines} lines is for {part}: say of some "
                f'"part": "{part}", or give more lines of other inputs that say no part'
                f"{unless}"
            )
