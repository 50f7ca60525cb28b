"""The one exception that means "the user can fix this", and how we phrase it."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave: printed without a traceback, exit status 2."""


class Preempted(RuntimeError):
    """The system asked the program to stop (SIGTERM): what is finished is kept.

    The command line exits with `PREEMPTED`, and launchers start the same command again.
    """


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
    return UserError(f"unknown {kind} {str(name)!r}{hint} Valid: {', '.join(valid)}.")


def listed(items: Iterable[str], *, most: int = 8, mark: str = "; ") -> str:
    """Return the first items in a line, and how many more there are.

    >>> listed(["a", "b", "c"], most=2)
    'a; b; and 1 more'
    """
    items = list(items)
    more = [f"and {len(items) - most:,} more"] if len(items) > most else []
    return mark.join([*items[:most], *more])
