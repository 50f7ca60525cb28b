"""What a merge was made of, beside the weights: enough to check it and to repeat it."""

import functools
import json
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from merging import checkpoints
from merging.checkpoints import MissingCheckpoint, Source
from merging.checkpoints.files import lies_in, path_of, read_small
from merging.checkpoints.source import SMALL
from merging.merge.digests import Digests
from merging.merge.inputs import Inputs
from merging.runtime import foreign_json, hub, revision, storage, tree
from merging.runtime.errors import UserError, listed, nearest
from merging.runtime.objects import ObjectPath
from merging.runtime.storage import Folder

NAME = "manifest.json"
VERSION = 5
_MOST_SIGNS = 20
# A model of a million leaves has some 200 MB of them.
LARGEST, _MOST_VALUES = 2**28, 2**24
_SETTINGS: dict[str, Any] = {
    "base": str | None,
    "experts": dict,
    "statistics": dict,
    "method": str,
    "method_file": dict | None,
    "schedule": str | None,  # for the reader: the method has its weights
    "leaf_rules": list,
    "space": str,
    "seed": int,
    "dtype": str | None,
    "format": str,
    "shard_size": str | int,
    "auxiliary_files": str | None,
    "merge_yaml": str | None,
}
_PACKAGES = ("merging", "jax", "jaxlib", "numpy", "orbax-checkpoint", "safetensors")


def describe_inputs(sources: Mapping[str, Source], output: str) -> list[dict]:
    """Return each input's name, place and files, with their sizes and digests.

    Args:
      sources: the inputs by name.
      output: the folder that the manifest will be in.
    """
    with ThreadPoolExecutor(4) as threads:
        files = list(threads.map(lambda source: source.files(), sources.values()))
    return [
        {
            "name": name,
            "uri": _recorded(source.uri, output),
            "format": source.format,
            "files": [file._asdict() for file in found],
        }
        for (name, source), found in zip(sources.items(), files, strict=True)
    ]


def is_of(output: str, settings: Mapping[str, Any], inputs: Inputs) -> bool:
    """Return whether a finished output is that of these settings and models.

    Raises:
      UserError: it is as far as the models' digests tell, which are not of all their
        bytes, but some of their files were written to since.
    """
    path = storage.place(output, "output") / NAME
    if not path.is_file():
        return False
    try:
        record = read(path)
    except UserError:  # a file of another kind
        return False
    wanted = json.loads(json.dumps(settings))
    if record["settings"] != wanted:
        return False
    if record["inputs"] != describe_inputs(inputs.everything, output):
        return False
    if changed := written_since(record["written"], inputs.everything.values()):
        raise UserError(
            f"{output} was merged before {listed(changed)} got the time of change that "
            "it has now. Whether it is still what these make is told by `merging merge "
            f"--manifest {path} --output ANOTHER`; or choose another output."
        )
    return True


def written_since(written: list[int], sources: Iterable[Source]) -> list[str]:
    """Return the files that were written to at other times than recorded, in ns.

    But those whose digests are of all their bytes, and those of a commit of the Hub.

    Args:
      written: of each file, in the order of `checkpoints.stamps`.
      sources: the models now.
    """
    now = [
        (file, size, when, _is_commit(source.uri))
        for source in sources
        for file, size, when in checkpoints.stamps([source])
    ]
    if len(now) != len(written):
        return [file for file, *_ in now]
    pairs = zip(now, written, strict=True)
    return [
        file
        for (file, size, when, known), then in pairs
        if size > SMALL and not known and when != then
    ]


def _is_commit(uri: str) -> bool:
    return hub.repository(hub.fetched(uri, weights=False)) is not None


def in_place(
    settings: Mapping[str, Any], folder: Folder, inputs: Mapping[str, str]
) -> dict[str, Any]:
    """Return a manifest's settings with its models' and files' places as of here.

    Args:
      settings: the manifest's.
      folder: that it is in.
      inputs: where models are now, by the experts' names; the base is ``base``, and
        the statistics of an expert ``statistics.NAME``.

    Raises:
      UserError: a name that no model has.
    """
    names = [*settings["experts"], *(["base"] if settings["base"] else [])]
    names += [f"statistics.{name}" for name in settings["statistics"]]
    for name in inputs.keys() - set(names):
        raise nearest("input", name, names)
    place = functools.partial(_placed, folder=folder)
    found = _with_paths(settings, place)
    found["experts"] |= {n: p for n, p in inputs.items() if n in found["experts"]}
    for name in found["statistics"].keys():
        now = inputs.get(f"statistics.{name}", found["statistics"][name])
        found["statistics"][name] = now
    if settings["base"]:
        found["base"] = inputs.get("base", found["base"])
    return found


def as_recorded(settings: Mapping[str, Any], output: str) -> dict[str, Any]:
    """Return a merge's settings with paths as the output's manifest has them."""
    return _with_paths(settings, functools.partial(_recorded, output=output))


def _with_paths(
    settings: Mapping[str, Any], place: Callable[[str], str]
) -> dict[str, Any]:
    base, own = settings["base"], settings["method_file"]
    chosen, experts = settings["auxiliary_files"], settings["experts"]
    is_folder = chosen not in (None, "base", *experts)
    return {
        **settings,
        "base": base and place(base),
        "experts": {name: place(uri) for name, uri in experts.items()},
        "statistics": {n: place(uri) for n, uri in settings["statistics"].items()},
        "auxiliary_files": place(chosen) if is_folder else chosen,
        "method_file": own and own | {"path": place(own["path"])},
    }


def versions() -> dict[str, str]:
    """Return the versions of what the bytes may depend on."""
    return revision.versions(*_PACKAGES)


def verify(output: str) -> list[str]:
    """Hold a merged checkpoint against its manifest.

    Every byte of its files but the manifest itself: leaves with their dtypes and
    shapes, headers, config, tokenizer, card. What pads the last chunk of an Orbax array
    belongs to no leaf, and may be anything.

    Returns:
      A line for every leaf and file that is not as it was written; none if all is well.

    Raises:
      UserError: there is no checkpoint, or no manifest in it.

    >>> import jax.numpy as jnp, merging
    >>> merging.checkpoints.save("qa", {"w": jnp.full(2, 1.0)})
    >>> merging.checkpoints.save("nli", {"w": jnp.full(2, 3.0)})
    >>> path = merging.merge_checkpoints(None, ["qa", "nli"], "average", "merged")
    >>> merging.merge.verify("merged")
    []
    """
    path = storage.place(output, "output") / NAME
    if not path.parent.exists():
        raise MissingCheckpoint(output)
    manifest = read(path)
    source = checkpoints.open_stored(output)
    lines = _changed_files(output, path.parent, manifest["files"])
    return lines + _changed_leaves(source, manifest["leaves"])


def _changed_files(
    output: str, folder: Folder, recorded: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Return a line for every file that is not as it was written."""
    lines = []
    for name, of in recorded.items():
        path = path_of(os.fspath(folder / name))
        if not path.exists():
            lines.append(f"{name}: in the manifest, but not here")
        elif not _lies_in(folder, name):
            lines.append(f"{name}: is a link to outside its folder")
        elif (
            checkpoints.changed_at(path)[0] != of["size"]
            or checkpoints.of_beginning(path, of["hashed"]) != of["sha256"]
        ):
            lines.append(f"{name}: its bytes have changed")
    others = checkpoints.auxiliary_files(output).keys() - recorded.keys()
    return lines + [f"{name}: not in the manifest" for name in sorted(others)]


def _lies_in(folder: Folder, name: str) -> bool:
    """Return whether no link leads from a file's name out of its folder.

    But into the Hugging Face cache, as `lies_in` has it.
    """
    if isinstance(folder, ObjectPath):
        return True
    within = (folder / name).resolve().is_relative_to(folder.resolve())
    return within or lies_in(path_of(os.fspath(folder)), name)


def _changed_leaves(
    source: Source, recorded: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Return a line for every leaf that is not as it was written."""
    leaves = tree.flatten(source.abstract)
    lines = [f"{p}: in the manifest, but not here" for p in recorded if p not in leaves]
    lines += [f"{p}: not in the manifest" for p in leaves if p not in recorded]
    same = {}
    for path in [p for p in leaves if p in recorded]:
        here = f"{tree.dtype(leaves[path])}{list(leaves[path].shape)}"
        written = f"{recorded[path]['dtype']}{recorded[path]['shape']}"
        if here == written:
            same[path] = leaves[path]
        else:
            lines.append(f"{path}: is {here}, and was written as {written}")
    found = Digests(same, source.read_into).finish()
    lines += [
        f"{p}: its bytes have changed"
        for p in same
        if found[p] != recorded[p]["sha256"]
    ]
    return lines


def read(path: str | Folder) -> dict[str, Any]:
    """Return a manifest.

    Raises:
      UserError: there is none, or it can't be read.
    """
    path = storage.place(path, "manifest")
    if not path.exists():
        raise UserError(f"there is no manifest at {path}.")
    try:
        text = read_small(path_of(os.fspath(path)), LARGEST)
        manifest = foreign_json.loads(text, _MOST_VALUES)
        leaves = manifest["leaves"]
        if manifest["version"] != VERSION or not isinstance(leaves, dict):
            raise ValueError(f"version {manifest['version']!r}")
        for leaf in leaves.values():
            str(leaf["sha256"]), str(leaf["dtype"]), list(leaf["shape"])
        _require_files(manifest["files"])
        for model in manifest["inputs"]:
            str(model["uri"]), list(model["files"])
        if {type(when) for when in manifest["written"]} - {int}:
            raise ValueError(f"written {manifest['written']!r}"[:200])
        _require_settings(manifest["settings"])
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}).") from None
    except UserError:  # it is damaged, or no file
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is no manifest of version {VERSION}: {error!r}"
        ) from None
    return manifest


def _require_files(files: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise a ValueError unless these are records of files inside of a folder."""
    for name, of in files.items():
        outside = name.startswith("/") or ".." in name.split("/")
        numbers = type(of["size"]) is int and type(of["hashed"]) is int
        if outside or not numbers or not 0 <= of["hashed"] <= of["size"]:
            raise ValueError(f"file {name!r}: {of}")
        str(of["sha256"])


def _require_settings(settings: Mapping[str, Any]) -> None:
    """Raise a ValueError unless these are a merge's arguments, each of its type."""
    if settings.keys() != _SETTINGS.keys():
        raise ValueError(f"settings {sorted(settings)}")
    wrong = [k for k, of in _SETTINGS.items() if not isinstance(settings[k], of)]
    words = [*settings["experts"].values(), *settings["leaf_rules"]]
    words += settings["statistics"].values()
    own = settings["method_file"]
    words += [] if own is None else [own["path"], own["sha256"]]
    if wrong or not all(isinstance(word, str) for word in words):
        raise ValueError(f"settings of a wrong type: {wrong or words}")


def as_bytes(manifest: Mapping[str, Any]) -> bytes:
    """Return a manifest's file."""
    return (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode()


def _recorded(uri: str, output: str) -> str:
    """Return a path as a manifest in the folder `output` has it.

    An absolute one as it is, and a relative one from there, whatever folder the merge
    was started in: a folder of models and their merges can be moved as a whole. Of a
    repository of the Hub, its name and the commit that was fetched.
    """
    uri = hub.fetched(uri, weights=False)
    if found := hub.repository(uri):
        return found.uri
    model, adapter = checkpoints.split_adapter(uri)
    if adapter is not None:
        return "+".join(_recorded(part, output) for part in (model, adapter))
    if "://" in uri or os.path.isabs(uri):
        return uri
    if storage.is_remote(output):  # from where no path leads back
        return os.path.abspath(uri)
    folder, name = os.path.split(uri.rstrip("/"))
    here = os.path.join(os.path.realpath(folder or "."), name)
    return os.path.relpath(here, os.path.realpath(output))


def _placed(uri: str, folder: str | Folder) -> str:
    """Return where the path is that a manifest in a folder has."""
    signs = [i for i, letter in enumerate(uri) if letter == "+"]
    for sign in signs[:_MOST_SIGNS]:
        both = (_joined(uri[:sign], folder), _joined(uri[sign + 1 :], folder))
        if checkpoints.split_adapter("+".join(both)) == both:
            return "+".join(both)
    return _joined(uri, folder)


def _joined(uri: str, folder: str | Folder) -> str:
    if "://" in uri or os.path.isabs(uri):
        return uri
    if storage.is_remote(folder):
        scheme, mark, rest = os.fspath(folder).partition("://")
        return scheme + mark + os.path.normpath(os.path.join(rest, uri))
    return os.path.normpath(os.path.join(os.path.realpath(folder), uri))
