"""Names of what could be rented: `v5p:4x4x8`, `v6e-16`, `h200:8x16`, `cpu:8`."""

import itertools
import math
import re
from typing import NamedTuple

from merging.planning.chips import CHIPS, Chip
from merging.runtime.errors import UserError, nearest


class Topology(NamedTuple):
    """Chips, and how they hang together.

    Attributes:
      name: chip and shape, such as `v6e:4x4`.
      chip: what each chip can do.
      shape: the grid of chips of one slice; of GPUs, (in a host, hosts).
      slices: grids that only a network joins.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    slices: int

    @property
    def devices(self) -> int:
        """Chips in all."""
        return math.prod(self.shape) * self.slices

    @property
    def hosts(self) -> int:
        """Machines that hold the chips."""
        return max(math.prod(self.shape) // self.chip.per_host, 1) * self.slices

    @property
    def domain(self) -> int:
        """Chips that reach each other without the network: a slice, or a GPU host."""
        if self.chip.platform == "gpu":
            return self.shape[0]
        return math.prod(self.shape)

    @property
    def label(self) -> str:
        """The name for a person."""
        return self.name if self.slices == 1 else f"{self.slices} slices of {self.name}"


def topology(name: str, slices: int = 1) -> Topology:
    """Return a topology by its name.

    Args:
      name: `CHIP:SHAPE`: of TPUs the grid of chips, of GPUs chips in a host x hosts, of
        `cpu` the number of virtual devices. Or the cloud's name of a TPU slice, such as
        `v5litepod-16`, in the shape that it has by default.
      slices: how many of these, joined by a network.

    Raises:
      UserError: an unknown chip, or a shape that it does not come in.
    """
    name = _by_shape(name)
    kind, _, shape = name.partition(":")
    if kind not in CHIPS:
        raise nearest("chip", kind, CHIPS)
    chip = CHIPS[kind]
    sizes = tuple(map(int, shape.split("x"))) if _is_shape(shape) else ()
    faults = _faults(kind, chip, sizes)
    if slices < 1:
        faults.append(f"{slices} slices")
    elif slices > 1 and chip.platform != "tpu":
        faults.append("only TPUs come in slices; give GPU hosts as 8xHOSTS")
    if faults:
        raise UserError(
            f"topology {name!r} does not exist: {'; '.join(faults)}. Valid are, for "
            f"example: {', '.join(EXAMPLES)}."
        )
    return Topology(name, chip, sizes, slices)


EXAMPLES = ("v4:4x4x4", "v5e:8x16", "v5p:4x4x8", "v6e:16x16", "tpu7x:4x4x8")
EXAMPLES += ("v5litepod-16", "v5p-128", "v6e-16")
EXAMPLES += ("a100:8x4", "h100:8x4", "h200:8x16", "b200:8x4", "cpu:8")

# The cloud's names of slices: {prefix: (chip, what the number counts for each chip)};
# https://docs.cloud.google.com/tpu/docs/v5p: TensorCores, two of a chip; v5e and v6e
# have one.
_CLOUD = {"v4": ("v4", 2), "v5p": ("v5p", 2), "v5litepod": ("v5e", 1)}
_CLOUD |= {"v6e": ("v6e", 1)}
_SIDES = (2, *range(4, 25, 4))


def _by_shape(name: str) -> str:
    """Return `v6e:4x4` of `v6e-16`, and any other name as it is.

    Raises:
      UserError: a number that no slice has.
    """
    found = re.fullmatch(r"([a-z0-9]+)-(\d+)", name)
    if not found or found[1] not in _CLOUD:
        return name
    chip, cores = _CLOUD[found[1]]
    chips, rest = divmod(int(found[2]), cores)
    shape = None if rest else _default_shape(chips, CHIPS[chip])
    if shape is None:
        raise UserError(
            f"topology {name!r} does not exist: {found[1]} counts "
            f"{'cores, two of a chip' if cores == 2 else 'chips'}. Valid are, for "
            f"example: {', '.join(EXAMPLES)}."
        )
    return f"{chip}:{'x'.join(map(str, shape))}"


def _default_shape(chips: int, chip: Chip) -> tuple[int, ...] | None:
    """Return the grid that is nearest to a square or a cube; None if there is none."""
    if chip.dimensions == (2,):
        sides = (1, 2, 4, 8, 16)
        shapes = [(a, b) for a in sides for b in (a, 2 * a) if 2 != a * b == chips]
        return next((s for s in shapes if max(s) <= 16), None)
    if chips == 4:
        return 2, 2, 1
    grids = itertools.combinations_with_replacement(_SIDES, 3)
    shapes = [grid for grid in grids if math.prod(grid) == chips]
    return min(shapes, key=sum, default=None)


def _is_shape(text: str) -> bool:
    return re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text) is not None


def _faults(kind: str, chip: Chip, sizes: tuple[int, ...]) -> list[str]:
    if not sizes:
        return [f"{kind} takes a shape such as {_example(kind)}"]
    if chip.platform == "gpu":
        if len(sizes) != 2 or sizes[0] > chip.per_host:
            return [f"{kind} takes chips in a host (at most 8) x hosts"]
        return []
    if len(sizes) not in chip.dimensions:
        counts = " or ".join(map(str, chip.dimensions))
        return [f"{kind} is a grid of {counts} dimensions, such as {_example(kind)}"]
    faults = []
    if math.prod(sizes) > chip.limit:
        faults.append(f"{kind} comes with at most {chip.limit} chips")
    # Hosts hold 2 x 2 chips; smaller slices are parts of one.
    if chip.platform == "tpu" and math.prod(sizes) > chip.per_host:
        if any(size % 2 for size in sizes[:2]):
            faults.append("the first two sizes must be even: a host has 2x2 chips")
    return faults


def _example(kind: str) -> str:
    return next(name for name in EXAMPLES if name.startswith(f"{kind}:"))
