"""Regular expressions that can't take long, whoever wrote them.

Python's engine tries the ways in which an expression may fit one after another, and of
`(a|a)*b` there are more than anybody can wait for. Here the ways are counted before
anything is tried: taken are characters, classes, groups and alternatives, in which
single characters, and no groups, are repeated; `(?i)` may stand before it.
"""

import re

from merging.runtime.errors import UserError

LONGEST = 1000  # characters of an expression
LONGEST_TEXT = 200  # and of what it is tried on
MOST_WAYS = 2**17
_OF_REPEAT = 2**7  # ways that an open repeat counts for
_OF_DIGITS = 2**3  # and one of digits, of which numbers in names have few
_LONG_NUMBER = re.compile(rf"\d{{{_OF_DIGITS + 1}}}")
_REPEATED_DIGIT = re.compile(r"(?:\\d|\[0-9\])[*+{]")
_DEEPEST = 20  # groups in groups
_TOKEN = re.compile(
    r"""
    (?P<open>\((?:\?(?:[:=!]|P<[A-Za-z_]\w*>))?)
    | (?P<close>\)(?P<maybe>\??))
    | (?P<bar>\|)
    | (?P<edge>[\^$])
    | (?:
        (?P<letter>\\[^\w\s]|[^\\^$.|?*+()\[\]{}])
        | (?P<digit>\\d|\[0-9\])
        | \\[a-zA-Z] | \. | \[\^?\]?(?:\\[^0-9]|(?!--)[^\]\\\[&~|])*\]
      )
      (?P<repeat>[*+?]\??|\{\d{1,3}(?:,\d{0,3})?\})?
    """,
    re.X | re.S,
)


class Pattern:
    """An expression that fits, or not, in few ways.

    Attributes:
      ways: how many have to be tried from one place of a text, at most.

    Args:
      text: the expression.

    Raises:
      ValueError: it is malformed, or there may be too many ways; says what it is.
    """

    def __init__(self, text: str):
        if len(text) > LONGEST or not text.isprintable():
            raise ValueError(f"is no line of at most {LONGEST} characters")
        try:
            plain = text.removeprefix("(?i)")
            self.ways = _ways(plain, plain != text)
            self._numbers = bool(_REPEATED_DIGIT.search(plain))
            self._of = re.compile(plain, re.I if plain != text else 0)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"is malformed: {error}") from None
        if self.ways > MOST_WAYS:
            raise ValueError(
                "may fit in too many ways; take fewer of *, +, ? and alternatives"
            )

    def found_in(self, text: str) -> bool:
        """Return whether it fits any part of a text."""
        self._require_short(text)
        return self._of.search(text) is not None

    def ends(self, module: str) -> bool:
        """Return whether it fits the whole of a module's name, or its end after a dot.

        As PEFT fits its patterns.
        """
        self._require_short(module)
        starts = [0, *(dot.end() for dot in re.finditer(r"\.", module))]
        return any(self._of.fullmatch(module, start) for start in starts)

    def _require_short(self, text: str) -> None:
        if self.ways > 1 and len(text) > LONGEST_TEXT:
            raise UserError(
                f"{text[:LONGEST_TEXT]!r}… is longer than the {LONGEST_TEXT} characters"
                f" that {self._of.pattern[:LONGEST_TEXT]!r} is tried on."
            )
        if self._numbers and _LONG_NUMBER.search(text):
            raise UserError(
                f"{text!r} has a number of more digits than "
                f"{self._of.pattern[:LONGEST_TEXT]!r} is tried on."
            )


class _Branch:
    """One of several alternatives: its ways, and its letters if it has nothing else."""

    def __init__(self):
        self.ways, self.letters = 1, ""

    def times(self, ways: int) -> None:
        self.ways, self.letters = self.ways * ways, None


def _ways(text: str, folded: bool) -> int:
    """Return in how many ways an expression may fit from one place, at most.

    Args:
      text: the expression.
      folded: whether capitals do not count, so that other letters may be the same.
    """
    at, groups = 0, [[_Branch()]]
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None or len(groups) > _DEEPEST:
            raise ValueError(f"has {text[at : at + 20]!r}, which is not taken here")
        at, branch = token.end(), groups[-1][-1]
        if token["open"]:
            groups.append([_Branch()])
        elif token["close"]:
            inside = _of_alternatives(groups.pop())
            if not groups:
                raise ValueError("is malformed: it closes a group that is not open")
            groups[-1][-1].times(inside + bool(token["maybe"]))
        elif token["bar"]:
            groups[-1].append(_Branch())
        elif token["letter"] and not token["repeat"] and branch.letters is not None:
            branch.letters = None if folded else branch.letters + token["letter"][-1]
        else:
            # What is last takes all that there is, and nothing has to be tried again.
            last = at == len(text) and token[0] == ".*"
            most = _OF_DIGITS if token["digit"] else _OF_REPEAT
            branch.times(1 if last else _of_repeat(token["repeat"] or "", most))
    if len(groups) > 1:
        raise ValueError("is malformed: it leaves a group open")
    return _of_alternatives(groups[0])


def _of_alternatives(branches: list[_Branch]) -> int:
    """Of letters alone only those fit together of which one begins with another."""
    letters = [b.letters for b in branches if b.letters is not None]
    if len(letters) < len(branches):
        return sum(branch.ways for branch in branches)
    return max(sum(map(longer.startswith, letters)) for longer in letters)


def _of_repeat(repeat: str, open_ways: int) -> int:
    least, comma, most = repeat.strip("{}").partition(",")
    if repeat[:1] == "{" and (most or not comma):
        return max(int(most or least) - int(least), 0) + 1
    return {"": 1, "?": 2}.get(repeat[:1], open_ways)
