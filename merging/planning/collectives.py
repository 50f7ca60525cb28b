"""What a compiled program sends between devices, read from XLA's text of it.

The text is that of one device's program. Loops are followed with the number of times
they run, so that a gather in a scan over 64 layers counts 64 times.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from merging.planning import hlo

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all")
KINDS += ("collective-permute", "collective-broadcast", "ragged-all-to-all")

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "c64": 8, "c128": 16}
_SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


class Collective(NamedTuple):
    """One kind of exchange in a program, all its places and turns together.

    Attributes:
      kind: XLA's name of it.
      network: whether it leaves a slice, or a host of GPUs.
      times: how often a device takes part.
      sent: bytes that a device sends in all of them, at least.
      largest: bytes of the largest result of one of them, on a device.
    """

    kind: str
    network: bool
    times: int
    sent: float
    largest: float


def read(text: str, devices: int, domain: int) -> tuple[Collective, ...]:
    """Return the collectives of a program.

    Args:
      text: XLA's, after its optimisations.
      devices: that run it.
      domain: how many neighbours of them need no network, numbered in order.

    Raises:
      ValueError: the text is no program, or the turns of a loop in it can't be told.
    """
    computations, entry = hlo.parse(text)
    found: dict[tuple[str, bool], Collective] = {}
    for instruction, times, scattered in _reached(computations, entry):
        kind = instruction.opcode.removesuffix("-start")
        groups = _groups(instruction.text, devices)
        result = _result(instruction)
        size = groups.shape[1]
        if scattered is not None and kind == "all-reduce":
            kind, result = "reduce-scatter", scattered
        if size < 2 and kind != "collective-permute":
            continue
        network = bool((groups // domain != groups[:, :1] // domain).any())
        old = found.get((kind, network), Collective(kind, network, 0, 0, 0))
        found[kind, network] = old._replace(
            times=old.times + times,
            sent=old.sent + times * sent(kind, result, size),
            largest=max(old.largest, result),
        )
    return tuple(sorted(found.values()))


def sent(kind: str, result: float, size: int) -> float:
    """Return the bytes each of `size` devices must send for a result of so many.

    The least that any algorithm sends: of a gather everything but what the receiver
    has, of an all-reduce that twice (scatter, then gather).
    """
    if kind == "collective-permute":
        return result
    if kind == "reduce-scatter":
        return result * (size - 1)
    return result * (size - 1) / size * (2 if kind == "all-reduce" else 1)


def _reached(
    computations: Mapping[str, hlo.Computation], entry: str
) -> Iterator[tuple[hlo.Instruction, int, float | None]]:
    """Yield (collective, times it runs, bytes it is cut to if a scatter follows)."""
    waiting = [(entry, 1)]
    while waiting:
        name, times = waiting.pop()
        computation = computations[name]
        scattered = None
        if name.startswith("all-reduce-scatter"):  # TPU's fusion of the two
            scattered = _bytes(computation.root.shape)
        for instruction in computation.instructions.values():
            opcode = instruction.opcode
            if opcode.removesuffix("-start") in KINDS:
                yield instruction, times, scattered
            elif opcode in ("async-update", "async-done"):
                continue  # what they call was counted where it began
            elif opcode == "while":
                turns = hlo.turns_of(instruction, computation, computations)
                waiting.append((hlo.named(instruction, "body"), times * turns))
            else:
                called = _CALLED.findall(instruction.text)
                for branches in _BRANCHES.findall(instruction.text):
                    called += re.findall(r"[\w.-]+", branches)
                waiting += [(c, times) for c in called if c in computations]


def _result(instruction: hlo.Instruction) -> float:
    """Return the bytes of what a device has afterwards."""
    if not instruction.opcode.endswith("-start"):
        return _bytes(instruction.shape)
    # Operands and results stand side by side, before some semaphores.
    sizes = [_bytes(part) for part in _parts(instruction.shape) if "[]" not in part]
    if instruction.opcode == "all-reduce-start":
        return sum(sizes)
    return sizes[1] if len(sizes) > 1 else sum(sizes)


def _parts(shape: str) -> list[str]:
    """Return the elements of a tuple's shape, themselves perhaps tuples."""
    parts, depth = [""], 0
    for character in shape.strip():
        depth -= character in ")]}"
        if character == "," and depth == 1:
            parts.append("")
        else:
            parts[-1] += character
        depth += character in "([{"
    return parts


def _bytes(shape: str) -> float:
    total = 0.0
    for dtype, sizes in _SHAPE.findall(shape):
        digits = re.search(r"\d+", dtype)
        each = _BYTES.get(dtype) or (int(digits[0]) / 8 if digits else 0)
        total += each * math.prod(map(int, filter(None, sizes.split(","))))
    return total


def _groups(text: str, devices: int) -> np.ndarray:
    """Return the devices that exchange with each other: [groups, devices in one]."""
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", text):
        return _lists(pairs[1])
    if named := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", text):
        sizes = [int(n) for n in re.findall(r"=(\d+)", named[1])]
        names = re.findall(r"'(\w+)'=", named[1])
        last = [names.index(n) for n in re.findall(r"'(\w+)'", named[2])]
        first = [i for i in range(len(sizes)) if i not in last]
        size = math.prod(sizes[i] for i in last)
        return (
            np.arange(devices).reshape(sizes).transpose(first + last).reshape(-1, size)
        )
    if iota := re.search(
        r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text
    ):
        shape, dims, order = (_numbers(iota[i] or "") for i in (1, 2, 3))
        ids = np.arange(math.prod(dims)).reshape(dims)
        return ids.transpose(order or range(len(dims))).reshape(shape[0], -1)
    if lists := re.search(r"replica_groups=\{(\{.*?\})\}", text):
        return _lists(lists[1])
    return np.arange(devices)[None]


def _lists(text: str) -> np.ndarray:
    return np.array([_numbers(part) for part in re.findall(r"\{([\d,]+)\}?", text)])


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n]
