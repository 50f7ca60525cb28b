"""How errors in somebody's data are told: the dataset, the examples, what is wrong."""

from collections.abc import Sequence

from merging.runtime.errors import UserError


def require_none(
    errors: Sequence[str], name: str, shown: int = 10, kind: str = "dataset"
) -> None:
    """Raise UserError with the first errors and the number of all, if there are any."""
    if errors:
        more = f"; and {len(errors) - shown} more" if len(errors) > shown else ""
        raise UserError(f"{kind} {name}: {'; '.join(errors[:shown])}{more}")
