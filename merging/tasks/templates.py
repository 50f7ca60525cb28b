"""Prompt templates: ``{name}`` stands for a value, and nothing else means anything.

There are no expressions, attributes or formats, and a value is never looked at for
slots of its own: what a stranger's file holds cannot do more than be shown. A template
language would have to be taught to refuse all that it can do beyond this.
"""

import re
from collections.abc import Mapping

_SLOT = re.compile(r"\{(\w+)\}")


def slots(template: str) -> tuple[str, ...]:
    """Return the names in braces, in order of appearance."""
    return tuple(_SLOT.findall(template))


def fill(template: str, values: Mapping[str, str]) -> str:
    """Return the template with every slot replaced by its value.

    Raises:
      KeyError: a slot without a value.
    """
    return _SLOT.sub(lambda found: values[found[1]], template)
