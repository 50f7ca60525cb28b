"""The header of a safetensors file, read as something a stranger wrote.

Eight bytes of length, a JSON object {name: dtype, shape, data_offsets}, then the data
(https://huggingface.co/docs/safetensors, "Format"). Whatever is not exactly that is
refused before a byte of it is used.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from merging.checkpoints.errors import CorruptCheckpoint
from merging.checkpoints.json_scanner import Scanner
from merging.runtime.errors import UserError, listed

LARGEST_HEADER = 100_000_000
METADATA = "__metadata__"
_MOST_AXES, _TOO_MANY = 32, 2**60
# What no name may hold: control characters, and halves of characters.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "BF16": np.dtype(jnp.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# A message lists so many offenders, a line each.
_MOST, _LINE = 50, "\n  "


class Tensor(NamedTuple):
    """Where a tensor lies: its bytes begin at `start` of the file."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int


def parse(path: object, length: bytes, text: bytes, size: int) -> dict[str, Tensor]:
    """Return the tensors of a file by name, in the order of their bytes.

    Args:
      path: the file's, for messages.
      length: its first eight bytes.
      text: the header that follows.
      size: of the file.

    Raises:
      CorruptCheckpoint: it is cut short or malformed.
      UserError: dtypes or names that this package does not read; lists them all.
    """
    room = size - len(length) - len(text)
    found: dict[str, Tensor] = {}
    unknown, nested = [], []
    for name, entry in _entries(path, text):
        if "/" in name:
            nested.append(repr(name))
        kind, shape, (start, stop) = _fields(path, name, entry)
        if kind not in DTYPES:
            unknown.append(f"{name}: {kind}")
            continue
        expected = math.prod(shape) * DTYPES[kind].itemsize
        if not 0 <= start <= stop <= room:
            raise CorruptCheckpoint(
                path, f"{name} lies at bytes {start}-{stop} of {room}: the file is cut"
            )
        if stop - start != expected:
            raise CorruptCheckpoint(
                path, f"{name} has {stop - start} bytes, its shape needs {expected}"
            )
        found[name] = Tensor(DTYPES[kind], shape, start)
    if nested:
        raise UserError(
            f"{path} holds tensors with a '/' in their names, as no family has them; "
            "save it again with other names ('.' in its place):\n  "
            + listed(nested, most=_MOST, mark=_LINE)
        )
    if unknown:
        raise UserError(
            f"{path} holds dtypes that cannot be merged; convert it to bfloat16, "
            "float16 or float32 first:\n  " + listed(unknown, most=_MOST, mark=_LINE)
        )
    return _in_order(path, found, len(length) + len(text), size)


def is_name(name: str) -> bool:
    """Return whether a tensor may have this name: one that can be shown and stored."""
    return bool(name) and not _UNPRINTABLE.search(name)


def header_length(path: object, first: bytes, size: int) -> int:
    """Return the length that a file's first eight bytes state.

    Raises:
      CorruptCheckpoint: there are fewer, or it is longer than the file or the format.
    """
    if len(first) < 8:
        raise CorruptCheckpoint(path, f"it has only {len(first)} bytes")
    length = int.from_bytes(first, "little")
    if length > min(size - 8, LARGEST_HEADER):
        raise CorruptCheckpoint(
            path, f"its header of {length} bytes does not fit in a file of {size}"
        )
    return length


def build(leaves: Mapping[str, Any]) -> tuple[bytes, dict[str, int]]:
    """Return a file's first bytes, header included, and where each tensor begins.

    The header is filled up with blanks, so that the data are aligned to 64 bytes.

    Args:
      leaves: {name: shape and dtype}, in the order of their bytes.
    """
    entries: dict[str, Any] = {METADATA: {"format": "pt"}}
    starts, at = {}, 0
    for name, leaf in leaves.items():
        size = math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
        entries[name] = {
            "dtype": dtype_name(leaf.dtype),
            "shape": list(leaf.shape),
            "data_offsets": [at, at + size],
        }
        starts[name], at = at, at + size
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % 64)
    begin = 8 + len(text)
    return (
        len(text).to_bytes(8, "little") + text,
        {name: begin + start for name, start in starts.items()},
    )


def dtype_name(dtype: Any) -> str:
    """Return the format's name of a dtype.

    Raises:
      UserError: it has none.
    """
    name = _NAMES.get(np.dtype(dtype))
    if name is None:
        raise UserError(f"safetensors files cannot hold {dtype}.")
    return name


def _entries(path: object, text: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a header's entries one at a time, its metadata left out."""
    try:
        scanner = Scanner(text.decode())
        for name in scanner.members():
            if name == METADATA:
                scanner.skip()
            else:
                yield name, scanner.record()
        scanner.finish()
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpoint(path, f"its header can't be read: {error}") from None


def _fields(path: object, name: str, entry: Any) -> tuple[str, tuple, tuple]:
    """Return an entry's dtype, shape and offsets, or refuse it."""
    kind, shape = entry.get("dtype"), entry.get("shape")
    offsets = entry.get("data_offsets")
    if not (
        is_name(name)
        and isinstance(kind, str)
        and (kind.isascii() and kind.isidentifier())
        and _whole_numbers(shape)
        and _whole_numbers(offsets)
        and len(offsets) == 2
        and min(shape, default=0) >= 0
        # Of an empty tensor, too, every dimension must be one that an array can have.
        and len(shape) <= _MOST_AXES
        and math.prod(max(n, 1) for n in shape) < _TOO_MANY
    ):
        raise CorruptCheckpoint(path, f"the entry of {name!r} is malformed")
    return kind, tuple(shape), tuple(offsets)


def _whole_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int for v in values)


def _in_order(
    path: object, found: dict[str, Tensor], begin: int, size: int
) -> dict[str, Tensor]:
    """Return the tensors with offsets in the file, if they fill it without overlap."""
    at, ordered = 0, {}
    sizes = {n: math.prod(t.shape) * t.dtype.itemsize for n, t in found.items()}
    # An empty tensor begins where the next one does, and goes before it.
    for name in sorted(found, key=lambda name: (found[name].start, sizes[name])):
        tensor = found[name]
        if tensor.start != at:
            how = "overlaps another" if tensor.start < at else "leaves a hole before it"
            raise CorruptCheckpoint(path, f"{name} {how}")
        at += sizes[name]
        ordered[name] = tensor._replace(start=begin + tensor.start)
    if begin + at != size:
        raise CorruptCheckpoint(
            path, f"it has {size} bytes, and its header speaks of {begin + at}"
        )
    return ordered
