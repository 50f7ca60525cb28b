"""Memory that the process really gives back, and aligned buffers to read into."""

import ctypes
import os
import sys

import numpy as np

# JAX takes a NumPy array on a CPU as it is, without a copy, if it is aligned so.
ALIGNMENT = 64
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def settle_process() -> None:
    """Make this process fit for a merge: bounded memory, and threads that take turns.

    glibc keeps what threads free in an arena for each; with a few arenas, given back
    when much is free, a bound on what is in use bounds what the process holds. And a
    thread whose result is ready should not wait 5 ms for the interpreter.
    """
    sys.setswitchinterval(1e-4)
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # no glibc
        return
    for option, value in (
        (_M_MMAP_THRESHOLD, 2**25),
        (_M_TRIM_THRESHOLD, 2**26),
        (_M_ARENA_MAX, 4),
    ):
        mallopt(option, value)


def of_machine() -> int:
    """Return the bytes that this machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def aligned(size: int) -> np.ndarray:
    """Return `size` bytes that begin at a multiple of `ALIGNMENT`."""
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size]


def padded(size: int) -> int:
    """Return the size rounded up to the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT
