"""Which leaf of which model becomes which leaf of the output."""

import bisect
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from merging.merge import rules
from merging.merge.mergekit.document import Document, Part, Slice
from merging.runtime.errors import UserError


class Home(NamedTuple):
    """Where an output's leaf comes from.

    Attributes:
      slice: of the document.
      sources: those of the slice that are merged into it.
      t: its depth in the slice, from 0 to 1.
      layer: its layer's number within the slice; None for all outside of layers.
    """

    slice: Slice
    sources: tuple[Part, ...]
    t: float
    layer: int | None = None

    def holds(self, model: str | None) -> bool:
        """Return whether a model is among the sources."""
        return any(part.model == model for part in self.sources)

    def path_in(self, source: Part, path: str) -> str:
        """Return what a source calls an output's leaf."""
        leaf = None if self.layer is None else rules.layer_leaf(path)
        if leaf is None or source.layers is None:
            return path
        return leaf.path(source.layers.start + self.layer)


class Homes:
    """Finds the home of each of the output's leaves.

    Args:
      document: what the file says.
      leaves: of each model it names.
    """

    def __init__(self, document: Document, leaves: Mapping[str, Mapping[str, Any]]):
        self._slices, self._leaves = document.slices, leaves
        self.sliced = document.slices[0].sources[0].layers is not None
        # {what stands before a layer's number: how many layers} of each model.
        self._counts = {name: _layer_counts(of) for name, of in leaves.items()}
        lengths = [_length(one) for one in document.slices] if self.sliced else []
        self._ends = list(itertools.accumulate(lengths))
        if _has_gradient(document) and not all(self._counts.values()):
            raise UserError(
                "values over the depth need layers with numbers in their leaves' names,"
                " as safetensors have them (merging convert)."
            )
        self.layers: tuple[int, ...] | None = None
        if self.sliced:
            self._require_layers()
            firsts = [one.sources[0].layers for one in document.slices]
            self.layers = tuple(n for of in firsts for n in range(of.start, of.stop))

    def of(self, path: str) -> Home:
        """Return the home of a leaf of the output."""
        leaf = rules.layer_leaf(path)
        first, last = self._slices[0], self._slices[-1]
        if leaf is None:
            one = first if rules.is_embedding(path) else last
            # What follows the layers takes no more sources than the first slice has.
            return Home(one, one.sources[: len(first.sources)], 0.0)
        if not self.sliced:
            counts = [self._counts[s.model].get(leaf.before, 1) for s in first.sources]
            return Home(first, first.sources, _depth(leaf.number, max(counts)))
        number = bisect.bisect_right(self._ends, leaf.number)
        one = self._slices[number]
        layer = leaf.number - (self._ends[number - 1] if number else 0)
        return Home(one, one.sources, _depth(layer, _length(one)), layer)

    def paths(self, sources: Sequence[Part]) -> Iterable[tuple[str, str, str]]:
        """Yield (leaf of the output, model, its leaf), given a source of each slice."""
        if not self.sliced:
            model = sources[0].model
            yield from ((path, model, path) for path in self._leaves[model])
            return
        ends = sources[0], sources[-1]
        for embedding, source in ((True, ends[0]), (False, ends[1])):
            for path in self._leaves[source.model]:
                outside = rules.layer_leaf(path) is None
                if outside and rules.is_embedding(path) == embedding:
                    yield path, source.model, path
        for source, end in zip(sources, self._ends, strict=True):
            layers = range(source.layers.start, source.layers.stop)
            shift = end - source.layers.stop
            for path in self._leaves[source.model]:
                leaf = rules.layer_leaf(path)
                if leaf is not None and leaf.number in layers:
                    yield leaf.path(leaf.number + shift), source.model, path

    def _require_layers(self) -> None:
        lines = []
        for part in (part for one in self._slices for part in one.sources):
            counts = self._counts[part.model]
            if len(counts) > 1:
                kinds = ", ".join(sorted(counts))
                lines.append(f"{part.model} has layers of several kinds: {kinds}")
            elif not counts:
                lines.append(
                    f"{part.model} has no layers with numbers in its leaves' names; "
                    "convert it to safetensors"
                )
            elif part.layers.stop > (most := max(counts.values())):
                lines.append(
                    f"{part.model} has {most} layers, and layer_range is "
                    f"[{part.layers.start}, {part.layers.stop}]"
                )
        if lines:
            lines = list(dict.fromkeys(lines))
            raise UserError("these slices can't be cut:\n  " + "\n  ".join(lines))


def _layer_counts(paths: Iterable[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for path in paths:
        if leaf := rules.layer_leaf(path):
            found[leaf.before] = max(found.get(leaf.before, 0), leaf.number + 1)
    return found


def _has_gradient(document: Document) -> bool:
    held = [document.parameters]
    for one in document.slices:
        held += [one.parameters, *(part.parameters for part in one.sources)]
    conditions = (c for of in held for setting in of.values() for c in setting)
    return any(len(condition.values) > 1 for condition in conditions)


def _length(one: Slice) -> int:
    layers = one.sources[0].layers
    return layers.stop - layers.start


def _depth(number: int, count: int) -> float:
    return number / (count - 1) if count > 1 else 1.0
