"""The one exception that means "the user can fix this", and how we phrase it."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave: printed without a traceback, exit status 2."""


class Preempted(RuntimeError):
    """The system asked the program to stop (SIGTERM): what is finished is kept.

    The command line exits with `PREEMPTED`, and launchers start the same command again.
    """


class Unreachable(RuntimeError):
    """An object store that did not answer, or refused; what it holds is not known.

    No `UserError`, which is a ValueError: whoever takes that for a damaged file must
    not take this for one.

    Attributes:
      path: what was asked for.
      reason: what came back.
      passing: whether it may well answer later, and the same command be given again.
    """

    def __init__(self, path: str, reason: str, passing: bool):
        super().__init__(path, reason, passing)
        self.path, self.reason, self.passing = path, reason, passing

    def __str__(self) -> str:
        remedy = "see to the network, and start again: what is finished is kept"
        if not self.passing:
            remedy = "see to the bucket, its permissions and your credentials"
        return f"{self.path} cannot be reached ({self.reason}); {remedy}."


PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: try again later


def nearest(kind: str, name: object, valid: Iterable[str]) -> UserError:
    """Return the error for an unknown name, with its likeliest spellings first.

    Args:
      kind: what was named, e.g. ``"method"``.
      name: what the user wrote.
      valid: every name that would have been accepted.
    """
    valid = sorted(valid)
    close = difflib.get_close_matches(str(name), valid, n=3, cutoff=0.4)
    hint = f": did you mean {' or '.join(close)}?" if close else "."
    known = listed(valid, most=40, mark=", ")
    return UserError(f"unknown {kind} {str(name)!r}{hint} Valid: {known}.")


def listed(items: Iterable[str], *, most: int = 8, mark: str = "; ") -> str:
    """Return the first items in a line, and how many more there are.

    >>> listed(["a", "b", "c"], most=2)
    'a; b; and 1 more'
    """
    items = list(items)
    more = [f"and {len(items) - most:,} more"] if len(items) > most else []
    return mark.join([*items[:most], *more])
