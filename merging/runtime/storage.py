"""Files that appear whole or not at all, and the digests that name their content.

Every room that publishes a file or a folder, or keys something by what it depends on,
does it with these: atomicity and hashing are written once. What is kept lies in a
`Folder`, of this machine or of an object store: `place` makes one of what the user
wrote.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from merging.runtime import compilations, objects
from merging.runtime.errors import UserError
from merging.runtime.objects import ObjectPath

# Object stores that checkpoints are read from, and the Hugging Face Hub (`hub`); and
# those that things are kept in.
REMOTE = ("gs://", "s3://", "hf://")
KEPT_IN = (objects.SCHEME,)
Folder = Path | ObjectPath
SETTLE = 30.0  # seconds between two writings of a file that grows in an object store
# One slash is what pathlib leaves of two.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_LARGEST_SIZE = 2.0**63


def supported_path(
    path: str | os.PathLike, name: str, schemes: Sequence[str] = ()
) -> str:
    """Return a path as text, unless it begins with a scheme that is not supported.

    As a path of this machine `gs://b/x` would be a folder `gs:`, made without a word.

    Args:
      path: what was given.
      name: of the setting, for the message.
      schemes: that are supported, such as `REMOTE`.

    Raises:
      UserError: it has another.
    """
    text = os.fspath(path)
    found = _SCHEME.match(text)
    if found and f"{found[1]}://" not in schemes:
        stores = f" or in {' or '.join(schemes)}" if schemes else ""
        raise UserError(
            f"{name} {text}: {found[1]}:// is not supported here; give a path of a "
            f"mounted file system{stores}."
        )
    return text


def place(path: str | os.PathLike, name: str = "path") -> Folder:
    """Return where the user means: a path of this machine, or of an object store.

    Args:
      path: what was given.
      name: of the setting, for the message.

    Raises:
      UserError: a scheme that is not supported, or the store's client is not installed.
    """
    text = supported_path(path, name, KEPT_IN)
    return objects.connect(text, name) if is_remote(text) else Path(path)


def absolute(path: Folder) -> Folder:
    """Return a path that does not depend on the folder that this process is in."""
    return path if isinstance(path, ObjectPath) else path.absolute()


def is_remote(path: str | os.PathLike) -> bool:
    """Return whether this names something in an object store."""
    return "://" in os.fspath(path)


def scratch(folder: Folder) -> Path:
    """Return this machine's own folder for what belongs to one in an object store.

    For what can be made again: caches and logs. One of this machine's is its own.
    """
    if isinstance(folder, ObjectPath):
        return compilations.user_cache() / "scratch" / digest(str(folder))
    return folder


def fetch(folder: Folder, wanted: Collection[str]) -> None:
    """Bring what folders of an object store have into a `scratch`, if it isn't there.

    Files are not compared: they are named by content, or checked by who reads them.

    Args:
      folder: whose scratch.
      wanted: names of folders in it.
    """
    if not isinstance(folder, ObjectPath):
        return
    here = scratch(folder)
    for found in folder.find():
        inside = str(found.relative_to(folder))
        local = here / inside
        if inside.split("/")[0] in wanted and not local.exists():
            local.parent.mkdir(parents=True, exist_ok=True)
            fresh = local.with_name(f".{local.name}.{os.getpid()}.tmp")
            found.fetch(fresh)
            os.replace(fresh, local)


def keep(folder: Folder, inside: Path) -> None:
    """Put a file, or a folder's, inside a `scratch` into the object store, too."""
    if not isinstance(folder, ObjectPath):
        return
    here = scratch(folder)
    # A description last: who finds it finds what it describes.
    files = [path for path in (inside, *inside.rglob("*")) if path.is_file()]
    for path in sorted(files, key=lambda path: path.suffix == ".json"):
        (folder / str(path.relative_to(here))).send(path)


class Growing:
    """A file that is added to, which in an object store is written anew, not often.

    Attributes:
      path: on this machine, where lines are added.

    Args:
      kept: where it is kept.
    """

    def __init__(self, kept: Folder):
        self._kept, self._last = kept, float("-inf")
        self.path = scratch(kept.parent) / kept.name
        if isinstance(kept, ObjectPath):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.unlink(missing_ok=True)
            if kept.exists():  # what another machine has left
                kept.fetch(self.path)

    def settle(self, now: bool = False) -> None:
        """Have the object store take what was added, if that is due."""
        due = now or time.monotonic() - self._last > SETTLE
        if due and isinstance(self._kept, ObjectPath) and self.path.exists():
            self._last = time.monotonic()
            self._kept.send(self.path)


def remove(folder: Folder) -> None:
    """Remove a folder and all that is in it, if it is there."""
    if isinstance(folder, ObjectPath):
        folder.rmtree(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def write_bytes(path: str | os.PathLike, data: bytes) -> Folder:
    """Write bytes so that `path` holds the old content or all of the new; return it.

    Raises:
      UserError: the file cannot be written (disk full, no permission).
    """
    if is_remote(path):
        path = place(path)
        path.write_bytes(data)
        return path
    path, temporary = Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        with open(fresh, "xb") as file:
            temporary = fresh
            file.write(data)
            file.flush()
            # Before the rename: a crash must not leave the name on empty blocks.
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; what was there before "
            "is untouched. Make room or choose another directory."
        ) from error
    return path


def write_json(path: str | os.PathLike, record: Mapping[str, Any]) -> Folder:
    """Write a record as JSON, keys sorted, as `write_bytes` does."""
    return write_bytes(path, as_json(record))


def as_json(record: Mapping[str, Any]) -> bytes:
    """Return a record's file."""
    return json.dumps(record, indent=1, sort_keys=True).encode()


def sync_folder(folder: str | os.PathLike) -> None:
    """Make the names in a folder survive a power cut; an object store's do."""
    if is_remote(folder):
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Network file systems that keep no folder of their own have nothing to sync.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def digest(*parts: Any, length: int = 16) -> str:
    """Return hex digits of the SHA-256 of JSON values (and bytes), in their order.

    The same on every machine and Python version; 1 and 1.0 differ, as their types do,
    and mappings are equal whatever the order of their keys.
    """
    found = hashlib.sha256()
    for part in parts:
        if not isinstance(part, bytes):
            part = json.dumps(part, sort_keys=True, separators=(",", ":")).encode()
        # With its length: where one part ends and the next begins is content.
        found.update(len(part).to_bytes(8, "little") + part)
    return found.hexdigest()[:length]


def parse_size(text: str | int, name: str = "memory_budget") -> int:
    """Return the bytes of `1GB`, `500 MB`, `2GiB` or a number.

    Args:
      text: what was given.
      name: of the setting, for the message.

    Raises:
      UserError: it is none of these, less than a byte, or more than any machine has.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", str(text), re.I)
    size = 0.0
    if found is not None:
        unit = _UNITS[found[2].upper()]
        if found[3]:
            unit = 2 ** (10 * list(_UNITS.values()).index(unit))
        size = float(found[1]) * unit
    if not 1 <= size < _LARGEST_SIZE:
        shown = repr(text) if len(str(text)) <= 80 else f"{str(text)[:80]!r}…"
        raise UserError(f"{name} {shown} is no size; write 1GB, 500MB, 2GiB.")
    return int(size)
