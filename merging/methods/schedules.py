"""Weights of the checkpoints of one training run, by a schedule over their order.

A text such as ``ema``, ``ema(0.5)`` or ``lawa(k=5)`` names one. All but the number of
checkpoints is in the text, and the weights sum to 1.
"""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

from merging.runtime.errors import UserError, nearest


class _Schedule(NamedTuple):
    """A schedule: its weights, oldest first, and its number's name and default."""

    weights: Callable[[int, float], list[float]]
    number: str = ""
    default: float = 0.0


def run_weights(schedule: str, count: int) -> tuple[float, ...]:
    """Return the weights of `count` checkpoints of a run, the oldest first.

    uniform      1/n each.
    ema(alpha)   the exponential moving average P ← (1 − α) P + α W that begins at the
                 oldest; α = 0.2 (PMA, arXiv 2505.12082).
    linear       WSM (arXiv 2507.17634): the mean that a decay of the learning rate
    minus_sqrt   would have come to. With dᵢ = s(i/n), the share of the i-th update that
                 stays, c_{n−1} = d_{n−1}, cᵢ = dᵢ − dᵢ₊₁ and c₀ = 1 − Σ of the others;
                 s(x) = 1 − x or 1 − √x.
    lawa(k)      the mean of the k latest (Kaddour 2022, arXiv 2209.14981); 0 before.

    Raises:
      UserError: an unknown schedule, or a number that it cannot have.

    >>> run_weights("ema(0.5)", 3)
    (0.25, 0.25, 0.5)
    """
    name, number = _parsed(schedule)
    return tuple(_SCHEDULES[name].weights(count, number))


def _parsed(text: str) -> tuple[str, float]:
    found = re.fullmatch(r"\s*([\w-]+)\s*(?:\(\s*(?:(\w+)\s*=)?([^()=]*)\))?\s*", text)
    name = found[1].replace("-", "_") if found else text
    if name not in _SCHEDULES:
        raise nearest("schedule", name, _SCHEDULES)
    known = _SCHEDULES[name]
    if not found[3]:
        if known.number and not known.default:
            raise UserError(f"schedule {name}: write {name}({known.number}=5).")
        return name, known.default
    try:
        if found[2] not in (None, known.number) or not known.number:
            raise ValueError(text)
        number = float(found[3])
    except ValueError:
        takes = f"one number, {known.number}" if known.number else "no number"
        raise UserError(f"schedule {text!r}: {name} takes {takes}.") from None
    return name, number


def _uniform(count: int, number: float) -> list[float]:
    return [1 / count] * count


def _ema(count: int, alpha: float) -> list[float]:
    if not 0 < alpha <= 1:
        raise UserError(f"schedule ema: alpha must be in (0, 1], not {alpha:g}.")
    later = [alpha * (1 - alpha) ** (count - 1 - i) for i in range(1, count)]
    return [(1 - alpha) ** (count - 1), *later]


def _lawa(count: int, k: float) -> list[float]:
    if k != int(k) or not 1 <= k <= count:
        raise UserError(
            f"schedule lawa: k must be a whole number from 1 to the {count} checkpoints"
            f" that there are, not {k:g}."
        )
    return [0.0] * (count - int(k)) + [1 / int(k)] * int(k)


def _after_decay(share: Callable[[float], float]) -> Callable[..., list[float]]:
    def weights(count: int, number: float) -> list[float]:
        decay = [share(i / count) for i in range(count)] + [0.0]
        later = [decay[i] - decay[i + 1] for i in range(1, count)]
        return [1 - math.fsum(later), *later]

    return weights


_SCHEDULES = {
    "uniform": _Schedule(_uniform),
    "ema": _Schedule(_ema, "alpha", 0.2),
    "linear": _Schedule(_after_decay(lambda x: 1 - x)),
    "minus_sqrt": _Schedule(_after_decay(lambda x: 1 - math.sqrt(x))),
    "lawa": _Schedule(_lawa, "k"),
}
