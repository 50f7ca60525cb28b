"""Files that appear whole or not at all, and the digests that name their content.

Every room that publishes a file or a folder, or keys something by what it depends on,
does it with these: atomicity and hashing are written once.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from merging.runtime.errors import UserError

# Object stores that checkpoints are read from.
REMOTE = ("gs://", "s3://")
# One slash is what pathlib leaves of two.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


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


def write_bytes(path: str | os.PathLike, data: bytes) -> Path:
    """Write bytes so that `path` holds the old content or all of the new; return it.

    Raises:
      UserError: the file cannot be written (disk full, no permission).
    """
    path, temporary = Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False
        ) as file:
            temporary = file.name
            file.write(data)
            file.flush()
            # Before the rename: a crash must not leave the name on empty blocks.
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
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


def write_json(path: str | os.PathLike, record: Mapping[str, Any]) -> Path:
    """Write a record as JSON, keys sorted, as `write_bytes` does."""
    return write_bytes(path, json.dumps(record, indent=1, sort_keys=True).encode())


def sync_folder(folder: str | os.PathLike) -> None:
    """Make the names in a folder survive a power cut."""
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
      UserError: it is none of these, or not positive.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", str(text), re.I)
    if not found or not float(found[1]):
        raise UserError(f"{name} {text!r} is no size; write 1GB, 500MB, 2GiB.")
    unit = _UNITS[found[2].upper()]
    if found[3]:
        unit = 2 ** (10 * list(_UNITS.values()).index(unit))
    return int(float(found[1]) * unit)
