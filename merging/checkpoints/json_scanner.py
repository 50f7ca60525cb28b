"""JSON of a stranger, member by member: what is made of it is no larger than it is.

A list of empty lists takes twenty times its text once it is made into objects. Here a
caller goes through an object's members and takes those values that it wants, each of
the kind that it wants.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from merging.runtime import foreign_json

# Characters of an object that is read whole, and values of any other value.
LARGEST_RECORD = 4096

_BLANKS = re.compile(r"[ \t\n\r]*")
# What a value that nobody wants is made of: texts, brackets, and the rest.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[{]|[\]}]|[^"\[\]{},]++|,', re.S)


class Scanner:
    """Goes through a JSON text once. Whatever is not as asked for is a ValueError.

    >>> scanner = Scanner('{"a": {"b": [1, 2]}, "c": "d"}')
    >>> for name in scanner.members():
    ...     print(name, scanner.record() if name == "a" else scanner.text())
    a {'b': [1, 2]}
    c d
    >>> scanner.finish()
    """

    def __init__(self, text: str):
        self._text, self._at = text, 0
        self._skip_blanks()

    def members(self) -> Iterator[str]:
        """Yield the names in the object that begins here; the caller takes each value.

        A name that was there before is refused.
        """
        self._expect("{")
        names: set[str] = set()
        more = not self._take("}")
        while more:
            name = self.text()
            if name in names:
                raise ValueError(f"{name!r} given twice")
            names.add(name)
            self._expect(":")
            yield name
            more = not self._take("}")
            if more:
                self._expect(",")

    def text(self) -> str:
        """Return the string that begins here."""
        if not self._text.startswith('"', self._at):
            raise ValueError(f"no text at {self._at}")
        found, self._at = _TEXT.raw_decode(self._text, self._at)
        self._skip_blanks()
        return found

    def record(self) -> dict[str, Any]:
        """Return the object that begins here, which is short and holds no other."""
        start = self._at
        stop = self._text.find("}", start, start + LARGEST_RECORD) + 1
        if not self._text.startswith("{", start) or not stop:
            raise ValueError(f"no short object at {start}")
        self._at = stop
        self._skip_blanks()
        return _RECORD.decode(self._text[start:stop])

    def value(self) -> Any:
        """Return the value that begins here, whatever it is, if it has few in it."""
        start = self._at
        self.skip()
        return foreign_json.loads(self._text[start : self._at], LARGEST_RECORD)

    def skip(self) -> None:
        """Go past the value that begins here, whatever it is."""
        depth = 0
        while True:
            token = _TOKEN.match(self._text, self._at)
            if token is None or (not depth and token[0] in "]},"):
                raise ValueError(f"no value at {self._at}")
            self._at = token.end()
            depth += (token[0] in "[{") - (token[0] in "]}")
            if not depth:
                break
        self._skip_blanks()

    def finish(self) -> None:
        """Require that nothing follows."""
        if self._at != len(self._text):
            raise ValueError(f"something follows at {self._at}")

    def _take(self, token: str) -> bool:
        if found := self._text.startswith(token, self._at):
            self._at += 1
            self._skip_blanks()
        return found

    def _expect(self, token: str) -> None:
        if not self._take(token):
            raise ValueError(f"no {token} at {self._at}")

    def _skip_blanks(self) -> None:
        self._at = _BLANKS.match(self._text, self._at).end()


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"one of {', '.join(map(repr, found))} given twice")
    return found


_TEXT = json.JSONDecoder()
_RECORD = json.JSONDecoder(object_pairs_hook=_without_duplicates)
