"""JSON of a stranger, whole: what is made of it takes no more memory than is allowed.

A list of empty lists takes twenty times its text once it is made into objects.
`merging.checkpoints.json_scanner` goes through what may be longer, member by member.
"""

import json
from typing import Any

# Of the descriptions of models, the longest have a tenth; they take 100 MB at most.
MOST_VALUES = 2**20
_SIGNS = "[{,:"  # each value of more than one stands after one of these


def loads(text: str | bytes, most: int = MOST_VALUES) -> Any:
    """Return the values of a JSON text.

    Args:
      text: of any origin.
      most: the values that it may have, names in objects among them.

    Raises:
      ValueError: it is no JSON, nested too deep, or may have more values.
    """
    signs = (s.encode() for s in _SIGNS) if isinstance(text, bytes) else _SIGNS
    if sum(map(text.count, signs)) > most:
        raise ValueError(f"it may hold more than {most} values")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
