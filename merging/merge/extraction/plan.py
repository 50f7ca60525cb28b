"""What an extraction makes of each leaf of the base."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from merging import checkpoints
from merging.checkpoints import Source
from merging.merge.rules import layer_leaf
from merging.runtime import foreign_json, tree
from merging.runtime.errors import UserError, listed
from merging.runtime.patterns import Pattern

WEIGHT = ".weight"
# Models whose layers store their weights as [in, out], and their modules under other
# names than their files.
_TURNED = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")


class Plan(NamedTuple):
    """What becomes of each leaf.

    Attributes:
      matrices: leaves that get factors.
      whole: leaves that are stored as the model has them.
      rest: float leaves that the adapter leaves as the base has them.
    """

    matrices: tuple[str, ...]
    whole: tuple[str, ...]
    rest: tuple[str, ...]


def plan(base: Source, leaves: str, whole: str) -> Plan:
    """Return what becomes of the leaves, or refuse what fits none."""
    _refuse_turned(base)
    found = tree.flatten(base.abstract)
    floats = [p for p, leaf in found.items() if tree.dtype_class(leaf) == "float"]
    stored, adapted = _found_by("whole", whole), _found_by("leaves", leaves)
    taken = [p for p in floats if whole and stored(p)]
    matrices = [
        path
        for path in floats
        if path not in taken
        and path.endswith(WEIGHT)
        and len(found[path].shape) == 2
        and 0 not in found[path].shape
        and (adapted(path) if leaves else layer_leaf(path))
    ]
    if whole and not taken:
        raise _no_leaf("whole", whole, floats)
    if not matrices:
        if not leaves and not any(path.endswith(WEIGHT) for path in floats):
            raise UserError(
                f"{base.uri} has no leaf MODULE.weight, as adapters name them: write it"
                " with its family's names first (merging convert)."
            )
        raise _no_leaf("leaves", leaves or "the layers' matrices", floats)
    # PEFT stores a module with all that it holds.
    modules = {path.rpartition(".")[0] for path in taken}
    taken = [p for p in floats if p.rpartition(".")[0] in modules and "." in p]
    both = [p for p in matrices if p in set(taken)]
    if both:
        raise UserError(f"in modules that are stored whole, too: {listed(both)}.")
    known = {*matrices, *taken}
    return Plan(
        tuple(matrices), tuple(taken), tuple(p for p in floats if p not in known)
    )


def _found_by(setting: str, pattern: str) -> Callable[[str], bool]:
    try:
        return Pattern(pattern).found_in
    except ValueError as error:
        raise UserError(f"{setting}={pattern[:200]!r}: the pattern {error}.") from None


def _no_leaf(setting: str, pattern: str, floats: Sequence[str]) -> UserError:
    return UserError(
        f"{setting}: {pattern} fits no matrix MODULE.weight of the base, whose leaves "
        f"are called {', '.join(floats[:3])}, …"
    )


def _refuse_turned(base: Source) -> None:
    config = checkpoints.read_auxiliary_files(base.uri).get("config.json", b"{}")
    try:
        found = foreign_json.loads(config)
    except ValueError:
        return
    kind = found.get("model_type") if isinstance(found, dict) else None
    if kind in _TURNED:
        raise UserError(
            f"{base.uri} is a {kind}, whose modules store [in, out] under other names "
            "than its file's: no adapter of it is made here."
        )
