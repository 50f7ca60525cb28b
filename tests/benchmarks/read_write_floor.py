"""The least that a merge does: read every input once, write one output.

    python read_write_floor.py [--sync] OUTPUT INPUT...

Reads into one buffer that is reused, and writes as many bytes as the first input has;
`--sync` waits until the disk has them.
"""

import mmap
import os
import sys

PIECE = 2**24


def main(arguments: list[str]) -> None:
    """Read and write."""
    sync = arguments[0] == "--sync"
    output, *inputs = arguments[sync:]
    buffer = mmap.mmap(-1, PIECE)  # its pages are there once, aligned
    for path in inputs:
        read(path, buffer)
    left = os.path.getsize(inputs[0])
    target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    view = memoryview(buffer)
    while left:
        left -= os.write(target, view[: min(left, PIECE)])
    if sync:
        os.fsync(target)
    os.close(target)


def read(path: str | os.PathLike, buffer: mmap.mmap) -> None:
    """Read a file from its beginning to its end."""
    source = os.open(path, os.O_RDONLY)
    place = 0
    while count := os.preadv(source, [buffer], place):
        place += count
    os.close(source)


if __name__ == "__main__":
    main(sys.argv[1:])
