"""The files of an Orbax folder: none of them leads out of it, and no name is a URL."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from merging.checkpoints import files
from merging.checkpoints.source import SourceFile, sampled_digest
from merging.runtime.errors import UserError
from merging.runtime.objects import ObjectPath

_DRIVERS = {"gs": "gcs", "s3": "s3"}
_SHOWN = 5
_LARGEST = 100_000_000
_DEEPEST = 32  # folders in folders; Orbax makes a few, and one for each axis


def require_inside(root: epath.Path) -> None:
    """Refuse links out of a folder, what is no file, and folders without an end.

    A link may lead to `blobs` of the same entry of the Hugging Face cache, whose
    snapshots are made so.

    Raises:
      UserError: there are some; names the first of them.
    """
    if "://" in os.fspath(root):
        return
    allowed = [Path(root).resolve()]
    for above in Path(os.path.abspath(root)).parents:
        if above.name == "snapshots":
            allowed.append(above.parent.resolve() / "blobs")
    wrong = [os.path.relpath(path, root) for path in _not_inside(root, allowed)]
    if wrong:
        raise UserError(
            f"{root}: these lead out of the folder, are no files, or lie too deep, and "
            f"are not read: {', '.join(map(repr, sorted(wrong)[:_SHOWN]))}"
        )


def described(root: epath.Path) -> list[SourceFile]:
    """Return all files with sizes and sampled digests, in order of their names."""
    found = []
    for path in sorted(files_in(root)):
        size = files.size(path)

        def read(at: int, length: int, path: epath.Path = path) -> bytes:
            with path.open("rb") as file:
                file.seek(at)
                return file.read(length)

        digest = sampled_digest(size, b"", read)
        found.append(SourceFile(str(path.relative_to(root)), size, digest))
    return found


def read_small(path: epath.Path) -> bytes:
    """Return what is in a file of a folder's description.

    Raises:
      ValueError: it is larger than any such file.
    """
    if files.size(path) > _LARGEST:
        raise ValueError(f"{path.name} is larger than any")
    return path.read_bytes()


def files_in(folder: epath.Path) -> Iterator[epath.Path]:
    """Yield every file below a folder."""
    if isinstance(folder, ObjectPath):
        yield from folder.find()
        return
    for path in folder.iterdir():
        if not path.is_dir():
            yield path
        elif not os.path.islink(path):  # what a link leads to is here under its name
            yield from files_in(path)


def kvstore(folder: epath.Path) -> dict[str, Any]:
    """Return a folder as TensorStore's JSON, where no character means anything.

    In a URL, `#`, `?` and `%2e` would.
    """
    scheme, mark, rest = os.fspath(folder).partition("://")
    if not mark:
        return {"driver": "file", "path": f"{scheme}/"}
    if scheme not in _DRIVERS:
        raise UserError(f"{folder}: Orbax is read from folders, gs:// and s3://.")
    bucket, _, path = rest.partition("/")
    path = f"{path.rstrip('/')}/".lstrip("/")
    return {"driver": _DRIVERS[scheme], "bucket": bucket, "path": path}


def _not_inside(
    folder: str | os.PathLike, allowed: Sequence[Path], depth: int = 0
) -> Iterator[str]:
    if depth > _DEEPEST:
        yield os.fspath(folder)
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                target = Path(entry.path).resolve()
                known = target.is_file() or target.is_dir() or not target.exists()
                if not known or not any(target.is_relative_to(a) for a in allowed):
                    yield entry.path
            elif entry.is_dir():
                yield from _not_inside(entry.path, allowed, depth + 1)
            elif not entry.is_file():
                yield entry.path
