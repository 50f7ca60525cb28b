"""How a fault in somebody's data is told: the dataset, the examples, what is wrong."""

from collections.abc import Sequence

from merging.runtime.errors import UserError


def require_none(
    faults: Sequence[str], name: str, shown: int = 10, kind: str = "dataset"
) -> None:
    """Raise UserError with the first faults and the number of all, if there are any."""
    if faults:
        more = f"; and {len(faults) - shown} more" if len(faults) > shown else ""
        raise UserError(f"{kind} {name}: {'; '.join(faults[:shown])}{more}")
