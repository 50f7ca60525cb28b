"""What a merge was made of, beside the weights: enough to check it and to repeat it."""

import hashlib
import importlib.metadata
import json
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from merging.checkpoints import MissingCheckpoint, Source, open_checkpoint
from merging.runtime import tree
from merging.runtime.errors import UserError
from merging.runtime.revision import git_revision

NAME = "manifest.json"
VERSION = 2
# Bytes that are read back at a time.
PART = 2**23
_SETTINGS: dict[str, Any] = {
    "base": str | None,
    "experts": dict,
    "method": str,
    "method_file": dict | None,
    "leaf_rules": list,
    "seed": int,
    "dtype": str | None,
    "format": str,
    "shard_size": str | int,
    "auxiliary_files": str | None,
    "merge_yaml": str | None,
}
_PACKAGES = ("merging", "jax", "jaxlib", "numpy", "orbax-checkpoint", "safetensors")


def describe_inputs(names: Sequence[str], sources: Sequence[Source]) -> list[dict]:
    """Return each input's name, place and files, with their sizes and digests."""
    with ThreadPoolExecutor(4) as threads:
        files = list(threads.map(lambda source: source.files(), sources))
    return [
        {
            "name": name,
            "uri": source.uri,
            "format": source.format,
            "files": [file._asdict() for file in found],
        }
        for name, source, found in zip(names, sources, files, strict=True)
    ]


def versions() -> dict[str, str]:
    """Return the versions of what the bytes may depend on."""
    found = {"python": platform.python_version(), "git": git_revision()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found


def digests(
    leaves: Mapping[str, Any],
    read_into: Callable[[str, int, np.ndarray], None],
    advance: Callable[[int, str], None] = lambda size, note: None,
) -> dict[str, str]:
    """Return the SHA-256 of each leaf's bytes, row-major and little-endian.

    Args:
      leaves: {path: shape and dtype}.
      read_into: as of a `Source` or a `Writer`.
      advance: told the bytes that were read.
    """

    def digest(path: str) -> tuple[str, str]:
        size, dtype = math.prod(leaves[path].shape), tree.dtype(leaves[path])
        step = max(PART // dtype.itemsize, 1)
        buffer = np.empty(min(step, size), dtype)
        found = hashlib.sha256()
        for start in range(0, size, step):
            part = buffer[: min(step, size - start)]
            read_into(path, start, part)
            found.update(part.view(np.uint8))
            advance(part.nbytes, "checking what was written")
        return path, found.hexdigest()

    with ThreadPoolExecutor(2) as threads:
        return dict(threads.map(digest, leaves))


def verify(output: str) -> list[str]:
    """Hold a merged checkpoint against its manifest.

    Returns:
      A line for every leaf that is not as it was written; none if all is well.

    Raises:
      UserError: there is no checkpoint, or no manifest in it.
    """
    path = Path(output) / NAME
    if not Path(output).exists():
        raise MissingCheckpoint(output)
    recorded = read(path)["leaves"]
    source = open_checkpoint(output)
    leaves = tree.flatten(source.abstract)
    lines = [f"{p}: in the manifest, but not here" for p in recorded if p not in leaves]
    lines += [f"{p}: not in the manifest" for p in leaves if p not in recorded]
    shared = {p: leaf for p, leaf in leaves.items() if p in recorded}
    found = digests(shared, source.read_into)
    lines += [
        f"{p}: its bytes have changed"
        for p in shared
        if found[p] != recorded[p]["sha256"]
    ]
    return lines


def read(path: str | Path) -> dict[str, Any]:
    """Return a manifest.

    Raises:
      UserError: there is none, or it can't be read.
    """
    path = Path(path)
    try:
        text = path.read_text()
        manifest = json.loads(text)
        leaves = manifest["leaves"]
        if manifest["version"] != VERSION or not isinstance(leaves, dict):
            raise ValueError(f"version {manifest['version']!r}")
        for leaf in leaves.values():
            str(leaf["sha256"])
        for model in manifest["inputs"]:
            str(model["uri"]), list(model["files"])
        _require_settings(manifest["settings"])
    except OSError as error:
        raise UserError(f"there is no manifest at {path} ({error.strerror}).") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is no manifest of version {VERSION}: {error!r}"
        ) from None
    return manifest


def _require_settings(settings: Mapping[str, Any]) -> None:
    """Raise a ValueError unless these are a merge's arguments, each of its type."""
    if settings.keys() != _SETTINGS.keys():
        raise ValueError(f"settings {sorted(settings)}")
    wrong = [k for k, of in _SETTINGS.items() if not isinstance(settings[k], of)]
    words = [*settings["experts"].values(), *settings["leaf_rules"]]
    own = settings["method_file"]
    words += [] if own is None else [own["path"], own["sha256"]]
    if wrong or not all(isinstance(word, str) for word in words):
        raise ValueError(f"settings of a wrong type: {wrong or words}")


def as_bytes(manifest: Mapping[str, Any]) -> bytes:
    """Return a manifest's file."""
    return (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode()
