"""The list of leaves of an Orbax tree, and which part of it the weights are.

A training's checkpoint holds more than weights. They are found by the tree's structure
alone: the `params` beside an optimizer's state or a step.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from merging.checkpoints.json_scanner import Scanner
from merging.checkpoints.location import TREE
from merging.checkpoints.orbax_files import read_small
from merging.runtime.errors import UserError, listed, nearest

PARAMS = "params"
_OPTIMIZER = {"opt_state", "opt_states", "optimizer", "optimizer_state", "opt"}
_TRAINING = _OPTIMIZER | {"step"}
_DEEPEST = 2  # keys above a training's state
_MOST_KEYS = 64  # of a leaf
_MOST = 50  # lines of a message
# As `Listed` has them.
_FACTS = ("use_zarr3", "use_ocdbt", "store_array_data_equal_to_fill_value")
_EMPTY = {"None": None, "Dict": {}, "NamedTuple": {}, "List": [], "Tuple": []}
_NO_ARRAYS = (*_EMPTY, "string")
_SEQUENCE = 1  # a key's type, in Orbax's list


class Entry(NamedTuple):
    """A leaf of the list.

    Attributes:
      stored: all its keys, as they name its array.
      keys: those below the subtree that was chosen.
      places: for each of these, whether it is a place in a list.
      kind: what the leaf is, in Orbax's words.
    """

    stored: tuple[str, ...]
    keys: tuple[str, ...]
    places: tuple[bool, ...]
    kind: str

    @property
    def path(self) -> str:
        """Its keys joined by `/`."""
        return "/".join(self.keys)

    @property
    def is_array(self) -> bool:
        """Whether there is an array of it."""
        return self.kind not in _NO_ARRAYS


class Listed(NamedTuple):
    """The list, and how the arrays are kept.

    Attributes:
      whole: every chunk was written, also those of zeros alone, so that one that isn't
        there is missing.
    """

    entries: list[Entry]
    zarr3: bool
    ocdbt: bool
    whole: bool


def read(folder: epath.Path) -> Listed:
    """Return the list of a tree's leaves.

    Raises:
      ValueError, KeyError and others: it is none, or a key is no name.
    """
    entries: list[Entry] | None = None
    facts = dict.fromkeys(_FACTS, False)
    scanner = Scanner(read_small(folder / TREE).decode())
    for name in scanner.members():
        if name == "tree_metadata":
            entries = [_entry(scanner.value()) for _ in scanner.members()]
        elif name in facts:
            facts[name] = bool(scanner.value())
        else:
            scanner.skip()
    scanner.finish()
    if entries is None:
        raise ValueError(f"{TREE} lists no leaves")
    return Listed(entries, *facts.values())


def require_names(paths: Iterable[str]) -> None:
    """Refuse leaves that would be refused when they are read again.

    Raises:
      UserError: a key is no name, or a leaf has too many; lists all of them.
    """
    wrong = [repr(path) for path in paths if not _are_names(path.split("/"))]
    if wrong:
        raise UserError(
            "an Orbax tree can't be read again with the names of these leaves; rename "
            "them where they are saved:\n  " + listed(wrong, most=_MOST, mark="\n  ")
        )


def below(entries: Iterable[Entry], keys: Sequence[str]) -> list[Entry]:
    """Return the entries under some keys, without these."""
    keys, depth = tuple(keys), len(keys)
    return [
        entry._replace(keys=entry.keys[depth:], places=entry.places[depth:])
        for entry in entries
        if entry.keys[:depth] == keys
    ]


def subtree(entries: Iterable[Entry], path: str, uri: str) -> list[Entry]:
    """Return the entries of the subtree that a user named.

    Raises:
      UserError: there is none of that name, or it is a leaf.
    """
    entries = list(entries)
    found = below(entries, path.split("/"))
    if found and all(entry.keys for entry in found):
        return found
    above = {"/".join(e.keys[:n]) for e in entries for n in range(1, len(e.keys))}
    if found:
        raise UserError(f"{uri}: {path} is a leaf; name a subtree ({_shown(above)}).")
    raise nearest(f"subtree of {uri}", path, above)


def weights(entries: Iterable[Entry], uri: str) -> tuple[tuple[str, ...], list[str]]:
    """Return the keys of the weights' subtree, and the names of what is beside it.

    () is the whole tree: there is no sign of a training in it.

    Raises:
      UserError: an optimizer's state, and not one `params` beside it.
    """
    inside: dict[tuple[str, ...], set[str]] = {}
    for entry in entries:
        for depth in range(min(len(entry.keys), _DEEPEST + 1)):
            inside.setdefault(entry.keys[:depth], set()).add(entry.keys[depth])
    states = [k for k, names in inside.items() if PARAMS in names and names & _TRAINING]
    states = [k for k in states if len(k) == min(map(len, states))]
    if len(states) == 1:
        return (*states[0], PARAMS), sorted(inside[states[0]] - {PARAMS})
    if states:
        several = ", ".join(f"{uri}#{'/'.join((*k, PARAMS))}" for k in sorted(states))
        raise UserError(f"{uri} holds the weights of several trainings: {several}.")
    signs = sorted({name for names in inside.values() for name in names & _OPTIMIZER})
    if signs:
        raise UserError(
            f"{uri} holds an optimizer's state ({', '.join(signs)}) and no {PARAMS} "
            f"beside it. Name the part that is the weights, as in {uri}#NAME; it holds "
            f"{_shown(inside[()])}."
        )
    return (), []


def containers(entries: Iterable[Entry]) -> Any:
    """Return the tree as it was saved: lists and all, a leaf's path in its place."""
    leaves = {}
    for entry in entries:
        leaf = entry.path if entry.is_array else _EMPTY.get(entry.kind)
        if entry.is_array or entry.kind in _EMPTY:
            leaves[tuple(zip(entry.keys, entry.places, strict=True))] = leaf
    return _container(leaves)


def _entry(found: Any) -> Entry:
    keys = tuple(str(key["key"]) for key in found["key_metadata"])
    if not _are_names(keys):
        raise ValueError(f"a leaf is called {keys[:_MOST_KEYS]}")
    places = tuple(k["key_type"] == _SEQUENCE for k in found["key_metadata"])
    return Entry(keys, keys, places, str(found["value_metadata"]["value_type"]))


def _are_names(keys: Sequence[str]) -> bool:
    return len(keys) <= _MOST_KEYS and all(map(_is_name, keys))


def _is_name(key: str) -> bool:
    return bool(key) and key not in (".", "..") and "/" not in key and key.isprintable()


def _container(leaves: Mapping[tuple, Any]) -> Any:
    if () in leaves:
        return leaves[()]
    parts: dict[Any, dict] = {}
    for (first, *rest), leaf in leaves.items():
        parts.setdefault(first, {})[tuple(rest)] = leaf
    made = {key: _container(part) for (key, _), part in parts.items()}
    order = [str(place) for place in range(len(made))]
    if made and all(place for _, place in parts) and set(made) == set(order):
        return [made[place] for place in order]
    return made


def _shown(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:8]) + (f", … ({len(names)})" if len(names) > 8 else "")
