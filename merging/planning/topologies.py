"""Names of what could be rented: `v5p:4x4x8`, `h200:8x16`, `cpu:8`."""

import math
import re
from typing import NamedTuple

from merging.planning.chips import CHIPS, Chip
from merging.runtime.errors import UserError, nearest


class Topology(NamedTuple):
    """Chips, and how they hang together.

    Attributes:
      name: as it was given.
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
        `cpu` the number of virtual devices.
      slices: how many of these, joined by a network.

    Raises:
      UserError: an unknown chip, or a shape that it does not come in.
    """
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


EXAMPLES = ("v4:4x4x4", "v5e:8x16", "v5p:4x4x8", "v6e:16x16", "h100:8x4", "h200:8x16")
EXAMPLES += ("cpu:8",)


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
