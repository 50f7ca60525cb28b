"""JSON Lines from strangers: one object a line, every error with its line number."""

import json
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from merging.runtime.errors import UserError
from merging.tasks.errors import require_none

MAX_ERRORS = 1000  # after so many in a file, the rest of it is not looked at
MAX_LINE = 4 << 20  # bytes; a longer line is not an example of anything


class Line(NamedTuple):
    """One line of a file.

    Attributes:
      number: from 1.
      offset: where it starts in the file, in bytes.
      record: its object, or None where there is an error.
      error: what is wrong with it; "" if nothing.
    """

    number: int
    offset: int
    record: dict[str, Any] | None
    error: str = ""


def read(path: Path) -> Iterator[Line]:
    """Yield the lines of a file that are not blank, those with an error included.

    Holds one line at a time, of at most ``MAX_LINE`` bytes.

    Raises:
      UserError: the file cannot be opened.
    """
    with _opened(path) as file:
        number = offset = 0
        while line := file.readline(MAX_LINE + 1):
            number, start, offset = number + 1, offset, file.tell()
            if len(line) > MAX_LINE:
                offset = _skip(file, line)
                yield Line(number, start, None, f"longer than {MAX_LINE} bytes")
            elif line.strip():
                yield _parsed(number, start, line)


def check(
    paths: Sequence[Path],
    error: Callable[[int, Line], str],
    name: str,
    kind: str = "dataset",
) -> None:
    """Show every line that is an object to a function that says what is wrong with it.

    Args:
      paths: the files.
      error: told the number of the file, from 0, and the line; "" if nothing.
      name, kind: what the files are, for the message.

    Raises:
      UserError: a file cannot be opened; errors, the first with file and line.
    """
    found = []
    for number, path in enumerate(paths):
        for line in read(path):
            if said := line.error or error(number, line):
                found.append(f"{path}:{line.number}: {said}")
            if len(found) > MAX_ERRORS:
                break
    require_none(found, name, kind=kind)


def count(path: Path) -> int:
    """Return the number of lines that are not blank.

    Raises:
      UserError: the file cannot be opened.
    """
    with _opened(path) as file:
        found = 0
        while line := file.readline(MAX_LINE + 1):
            found += bool(line.strip())
            if len(line) > MAX_LINE:
                _skip(file, line)
    return found


def at(path: Path, offsets: Iterable[int]) -> Iterator[dict[str, Any]]:
    """Yield the objects of the lines that start at these places.

    Raises:
      UserError: the file has changed since the places were found.
    """
    with _opened(path) as file:
        for offset in offsets:
            file.seek(offset)
            line = _parsed(0 if offset else 1, offset, file.readline(MAX_LINE + 1))
            if line.record is None:
                raise UserError(f"{path} changed while it was read: start again")
            yield line.record


def inside(folder: Path, name: str) -> Path:
    """Return a file of a folder.

    Raises:
      UserError: it lies outside, by its name or through a link.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{path} leads out of {folder}; put the file itself there")
    return path


def _opened(path: Path) -> BinaryIO:
    try:
        # A pipe would never end, or be empty when it is read again.
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path}: no regular file")
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def _has_surrogate(record: Any) -> bool:
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _skip(file: BinaryIO, line: bytes) -> int:
    """Read on to the end of a line that is too long; return where the next starts."""
    while line and not line.endswith(b"\n"):
        line = file.readline(MAX_LINE)
    return file.tell()


def _parsed(number: int, start: int, line: bytes) -> Line:
    try:
        record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        return Line(number, start, None, f"not UTF-8 (byte {error.start})")
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", None) or "nested too deep or a number too long"
        return Line(number, start, None, f"not JSON ({reason})")
    if b"\\ud" in line.lower() and _has_surrogate(record):
        return Line(number, start, None, "half of a surrogate pair, which is no text")
    if not isinstance(record, dict):
        return Line(number, start, None, f"{type(record).__name__}, not an object")
    return Line(number, start, record)
