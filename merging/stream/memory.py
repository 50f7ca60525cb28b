"""Memory that the process really gives back, and aligned buffers to read into."""

import ctypes
import re
import sys

import numpy as np

from merging.errors import UserError

# JAX takes a NumPy array on a CPU as it is, without a copy, if it is aligned so.
ALIGNMENT = 64
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


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


def parse_bytes(text: str | int) -> int:
    """Return the bytes of `1GB`, `500 MB`, `2GiB` or a number.

    Raises:
      UserError: it is none of these, or not positive.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", str(text), re.I)
    if not found or not float(found[1]):
        raise UserError(f"memory_budget {text!r} is no size; write 1GB, 500MB, 2GiB.")
    unit = _UNITS[found[2].upper()]
    if found[3]:
        unit = 2 ** (10 * list(_UNITS.values()).index(unit))
    return int(float(found[1]) * unit)


def aligned(size: int) -> np.ndarray:
    """Return `size` bytes that begin at a multiple of `ALIGNMENT`."""
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size]


def padded(size: int) -> int:
    """Return the size rounded up to the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT
