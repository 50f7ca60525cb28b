"""What a method may be told of each expert beside its weights, and in which shape.

Statistics are further inputs of a merge: a tree for each expert, or a checkpoint, with
the leaves' names. An array of them belongs to a leaf, and goes where the leaf goes: it
is cut into the same blocks, on the same devices.
"""

from typing import NamedTuple

from jax import Array

OF = ("element", "inputs")


class Matrices(NamedTuple):
    """How a leaf stores its matrices, row after row and one after the other.

    Attributes:
      rows: of each.
      columns: of each.
      inputs_first: whether the rows are a linear map's inputs (y = x W, as Flax has
        it), and not its outputs (y = x Wᵀ, as PyTorch has it).
    """

    rows: int
    columns: int
    inputs_first: bool = False

    @property
    def inputs(self) -> int:
        """How many inputs the linear map has."""
        return self.rows if self.inputs_first else self.columns

    def taken_from(self, block: Array) -> Array:
        """Return a block's matrices, [m, outputs, inputs]."""
        found = block.reshape(-1, self.rows, self.columns)
        return found.mT if self.inputs_first else found

    def stored(self, matrices: Array) -> Array:
        """Return [m, outputs, inputs] as the leaf stores them."""
        return matrices.mT if self.inputs_first else matrices


class Statistics(NamedTuple):
    """A kind of statistics.

    Attributes:
      name: such as ``fisher``: of the folder that holds them, in the one that is given.
      of: ``element``, a number for each of the leaf's elements: every leaf that is
        merged must have them. Or ``inputs``, a number for each two inputs of each of
        its matrices, [..., inputs, inputs]: leaves without are merged without.
    """

    name: str
    of: str = "element"

    def shape(
        self, leaf: tuple[int, ...], matrices: Matrices | None
    ) -> tuple[int, ...] | None:
        """Return the shape of a leaf's statistics; None if it can have none."""
        if self.of == "element":
            return tuple(leaf)
        if matrices is None:
            return None
        return (*leaf[:-2], matrices.inputs, matrices.inputs)

    def size(self, elements: int, matrices: Matrices | None) -> int:
        """Return how many numbers belong to so many elements, whole matrices."""
        if self.of == "element":
            return elements
        return elements // (matrices.rows * matrices.columns) * matrices.inputs**2


# The mean over examples of the squared gradient of log p of their targets.
FISHER = Statistics("fisher")
# The mean over tokens of x xᵀ, of a linear map's inputs x.
GRAM = Statistics("gram", "inputs")
