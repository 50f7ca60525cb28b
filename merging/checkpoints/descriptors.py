"""Descriptors of files, of however many a few at a time."""

import collections
import contextlib
import os
import threading
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class _Descriptor:
    """An open file, and how many threads use it."""

    def __init__(self, number: int):
        self.number, self.users, self.closing = number, 0, False


class Descriptors(Generic[Key]):
    """Open files: all that somebody uses, and the latest used of the others.

    Args:
      most: that are kept open.
      opened: opens the file of a key.
      leaving: told the key and descriptor of a file before it is closed to make room;
        what it raises meets whoever needed the room.
    """

    def __init__(
        self,
        most: int,
        opened: Callable[[Key], int],
        leaving: Callable[[Key, int], None] | None = None,
    ):
        self._most, self._opened, self._leaving = most, opened, leaving
        # Whoever collects garbage within may close a file.
        self._lock = threading.RLock()
        self._open: collections.OrderedDict[Key, _Descriptor]
        self._open = collections.OrderedDict()

    def keys(self) -> list[Key]:
        """Return those of the files that are open."""
        with self._lock:
            return list(self._open)

    @contextlib.contextmanager
    def of(self, key: Key) -> Iterator[int]:
        """Yield a file's descriptor, valid within the context."""
        with self._lock:
            found = self._open.pop(key, None) or _Descriptor(self._opened(key))
            found.users += 1
            self._open[key] = found  # the latest used
        try:
            yield found.number
        finally:
            with contextlib.ExitStack() as stack, self._lock:
                found.users -= 1
                if found.closing and not found.users:
                    os.close(found.number)
                for other in self._take_idle():  # without the lock: it may take long
                    stack.callback(self._leave, *other)

    def close(self, key: Key) -> None:
        """Close a file as soon as nobody uses it; it is opened again when needed."""
        with self._lock:
            found = self._open.pop(key, None)
            if found is not None:
                found.closing = True
                if not found.users:
                    os.close(found.number)

    def close_all(self) -> None:
        """Close every file as soon as nobody uses it."""
        with contextlib.ExitStack() as stack:
            for key in self.keys():
                stack.callback(self.close, key)

    def _take_idle(self) -> list[tuple[Key, int]]:
        """Forget the files that are too many, and return them, still open."""
        taken: list[tuple[Key, int]] = []
        for key in list(self._open):
            if len(self._open) <= self._most:
                break
            if key in self._open and not self._open[key].users:
                taken.append((key, self._open.pop(key).number))
        return taken

    def _leave(self, key: Key, number: int) -> None:
        try:
            if self._leaving is not None:
                self._leaving(key, number)
        finally:
            os.close(number)
