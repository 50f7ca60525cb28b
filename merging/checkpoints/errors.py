"""What can be wrong with a checkpoint, and with the disk it goes to."""

import contextlib
import errno
import os
from collections.abc import Iterator

from merging.runtime import objects, storage
from merging.runtime.errors import Unreachable, UserError


class CorruptCheckpoint(UserError):
    """A checkpoint that is damaged or was only half written.

    Attributes:
      path: where it is.
      reason: what is wrong with it.
    """

    def __init__(self, path: object, reason: str):
        super().__init__(path, reason)
        self.path, self.reason = str(path), reason

    def __str__(self) -> str:
        return (
            f"the checkpoint {self.path} is damaged or half written: {self.reason}\n"
            "Make it again, or name another."
        )


class MissingCheckpoint(UserError, FileNotFoundError):
    """There is no checkpoint where one was named.

    Attributes:
      path: the name.
      remedy: what to do, if that is known; a sentence.
    """

    def __init__(self, path: object, remedy: str = ""):
        super().__init__(path, remedy)
        self.path, self.remedy = str(path), remedy

    def __str__(self) -> str:
        return f"there is no checkpoint at {self.path}. {self.remedy}".rstrip()


class NotStored(UserError):
    """The disk did not take what was written: the bytes that are read back may be gone.

    Attributes:
      path: what was written.
    """

    def __init__(self, path: object, reason: str):
        super().__init__(path, reason)
        self.path, self.reason = str(path), reason

    def __str__(self) -> str:
        return (
            f"{self.path}: the disk did not store what was written ({self.reason}). "
            "Nothing was published; look after the disk and start again, which does "
            "this over, or choose an output elsewhere."
        )


@contextlib.contextmanager
def reading(path: object, leaf: str = "") -> Iterator[None]:
    """Turn whatever a damaged folder makes Orbax raise into `CorruptCheckpoint`."""
    try:
        yield
    except (UserError, PermissionError, MemoryError, Unreachable):
        raise
    except Exception as error:
        if storage.is_remote(str(path)) and objects.is_outage(error):
            raise objects.unreachable(path, error) from error
        first = str(error).strip().split("\n")[0][:300]
        of = f"{leaf}: " if leaf else ""
        reason = f"{of}{type(error).__name__}: {first}"
        said = reason if reason.isprintable() else repr(reason)
        raise CorruptCheckpoint(path, said) from error


@contextlib.contextmanager
def writing(path: object) -> Iterator[None]:
    """Name what is written, and a full disk, which Orbax passes on in disguises."""
    try:
        yield
    except (UserError, Unreachable):
        raise
    except Exception as error:
        if storage.is_remote(str(path)) and objects.is_outage(error):
            raise objects.unreachable(path, error) from error
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left" in str(error) or "quota exceeded" in str(error):
            raise UserError(
                f"the disk is full: {path} was not written. What was finished before "
                "stays usable; make room and start again."
            ) from error
        reason = getattr(error, "strerror", None) or _said_by_the_system(error)
        if reason or isinstance(error, OSError):
            raise UserError(
                f"cannot write {path}: {reason or error}; change that or "
                "choose another place."
            ) from error
        raise


def _said_by_the_system(error: Exception) -> str | None:
    """Return what of the system's is in an error that is not Python's for it.

    TensorStore raises a ValueError for whatever a write or flush comes back with.
    """
    reasons = map(os.strerror, (errno.EIO, errno.EROFS, errno.ESTALE, errno.EACCES))
    return next((reason for reason in reasons if reason in str(error)), None)
