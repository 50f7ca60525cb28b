"""How a fault in somebody's data is told: the dataset, the examples, what is wrong."""

from collections.abc import Sequence

from merging.errors import UserError


def require_none(faults: Sequence[str], dataset: str, shown: int = 10) -> None:
    """Raise UserError with the first faults and the number of all, if there are any."""
    if faults:
        more = f"; and {len(faults) - shown} more" if len(faults) > shown else ""
        raise UserError(f"dataset {dataset}: {'; '.join(faults[:shown])}{more}")
