"""Work that goes on beside the merge: objects of a store on their way.

One takes as long to get there as a block takes to be merged, and many go at once.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

THREADS = 16
ROOM = 2**26  # bytes that wait or are on their way, beside the memory of blocks


class Behind:
    """Calls that are made in threads, in any order; who comes after hears of errors.

    Args:
      at_once: make each call here and now instead.
    """

    def __init__(self, at_once: bool):
        self._pool = None if at_once else ThreadPoolExecutor(THREADS, "store")
        self._changed = threading.Condition()
        self._held = 0
        self._error: BaseException | None = None

    def call(self, what: Callable[[], None], size: int) -> None:
        """Have a call made that holds so many bytes; wait while there is no room.

        Raises:
          BaseException: what an earlier call raised.
        """
        if self._pool is None:
            return what()
        with self._changed:
            while self._held and self._held + size > ROOM and self._error is None:
                self._changed.wait()
            self._raise()
            self._held += size
        self._pool.submit(self._make, what, size)

    def settle(self) -> None:
        """Wait until all calls so far are made; raises as `call`."""
        with self._changed:
            while self._held and self._error is None:
                self._changed.wait()
            self._raise()

    def finish(self) -> None:
        """Wait until all calls are made, and take no more; raises as `call`."""
        self.close()
        self._raise()

    def close(self) -> None:
        """Wait for the calls that are being made, and make no others."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=self._error is not None)

    def _make(self, what: Callable[[], None], size: int) -> None:
        try:
            what()
        except BaseException as error:
            self._error = self._error or error
        with self._changed:
            self._held -= size
            self._changed.notify_all()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
