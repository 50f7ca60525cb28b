"""What a method costs: passes over the inputs, and memory beyond the budget."""

from typing import NamedTuple

from merging.merge.partition import reduction_passes
from merging.methods import Method

_HELD_WHOLE = {"matrix": "one matrix of each model", "tensor": "one leaf of each model"}
_OF_INPUTS = " and its statistics (inputs × inputs)"


class Cost(NamedTuple):
    """Of a streamed merge.

    Attributes:
      passes: over the inputs, as a rule.
      everywhere: whether those are over all leaves; else leaves that fit into a block
        are read once.
      memory: what must be there whatever the budget; empty if nothing must.
      statistics: the kind that is read of each model beside it; empty if none is.
    """

    passes: int
    everywhere: bool
    memory: str
    statistics: str = ""

    def __str__(self) -> str:
        words = "one pass" if self.passes == 1 else f"{self.passes} passes"
        if self.passes > 1 and not self.everywhere:
            words = f"one pass, or {words} over leaves larger than a block"
        if self.statistics:
            words += f", also over {self.statistics} statistics of each model"
        return f"{words}; {self.memory} in memory" if self.memory else words


def cost(method: Method) -> Cost:
    """Return what a streamed merge by a method takes."""
    passes = 1 + reduction_passes(method)
    memory, told = _HELD_WHOLE.get(method.granularity, ""), method.statistics
    if told is not None and told.of == "inputs":
        memory += _OF_INPUTS
    return Cost(passes, method.ranks_model, memory, told.name if told else "")
