"""XLA's text of a program: its computations, and how often its loops run."""

import re
from collections.abc import Mapping
from typing import NamedTuple

_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_LINE = re.compile(r"^\s*(ROOT )?%?([\w.-]+) = (.*)$")
_OPCODE = re.compile(r"(?:^|[\s)}\]])([a-z][a-z0-9-]*)\(")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_OPERAND = re.compile(r"%([\w.-]+)")


class Instruction(NamedTuple):
    """One line: `name = shape opcode(operands), attributes`; `text` is after the =."""

    name: str
    opcode: str
    shape: str
    text: str
    root: bool


class Computation(NamedTuple):
    """A function of the program: its instructions by name."""

    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        """What it returns."""
        return next(i for i in self.instructions.values() if i.root)


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Return a program's computations by name, and the name of the first to run.

    Raises:
      ValueError: the text is no program.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if not line.startswith(" ") and (head := _HEAD.match(line)):
            current = Computation(head[1], {})
            computations[head[1]] = current
            entry = head[1] if line.startswith("ENTRY") else entry
        elif current is not None and (found := _LINE.match(line)):
            opcode = _OPCODE.search(found[3])
            if opcode:
                shape = found[3][: opcode.start(1)]
                current.instructions[found[2]] = Instruction(
                    found[2], opcode[1], shape, found[3], bool(found[1])
                )
    if not entry:
        raise ValueError("no ENTRY computation: this is not XLA's text of a program")
    return computations, entry


def turns_of(
    loop: Instruction, around: Computation, computations: Mapping[str, Computation]
) -> int:
    """Return how often a loop runs: XLA's word, or found from its counter.

    A loop that ends where an argument of the program says counts once.

    Args:
      loop: the instruction.
      around: the computation that it stands in.
      computations: all of the program's.

    Raises:
      ValueError: neither is there.
    """
    if known := _TRIPS.search(loop.text):
        return int(known[1])
    condition = computations[named(loop, "condition")]
    body = computations[named(loop, "body")]
    if compared := _compared(condition, computations):
        counter, end = compared
        place, bound = _place(counter), _constant(end)
        if bound is None and _place(end) is not None:
            bound = _start(loop, around, _place(end))
            if bound is None:
                return 1
        if bound is not None and place is not None:
            step, start = _step(body, place), _start(loop, around, place)
            if step and start is not None:
                return -(-(bound - start) // step)
    raise ValueError(f"the loop {loop.name} does not say how often it runs")


def _compared(
    condition: Computation, computations: Mapping[str, Computation]
) -> tuple[Instruction, Instruction] | None:
    """Return what a loop's condition compares: the counter, and what it stays below."""
    root = compare = condition.root
    if root.opcode == "fusion":  # CPUs wrap the comparison
        compare = computations[named(root, "calls")].root
    compared = [condition.instructions[o] for o in operands(root)]
    plain = compare.opcode == "compare" and "direction=LT" in compare.text
    return (compared[0], compared[1]) if plain and len(compared) == 2 else None


def _place(instruction: Instruction) -> int | None:
    """Return which element of its operand an instruction takes, if it takes one."""
    found = re.search(r"get-tuple-element\(.*?index=(\d+)", instruction.text)
    return int(found[1]) if found else None


def _step(body: Computation, place: int) -> int:
    """Return what one turn adds to the element of the loop's state at a place."""
    step, name = 0, operands(body.root)[place]
    while (here := body.instructions[name]).opcode != "get-tuple-element":
        inputs = operands(here)
        if here.opcode in ("copy", "bitcast") and len(inputs) == 1:
            name = inputs[0]
            continue
        amounts = [_constant(body.instructions[o]) for o in inputs]
        if here.opcode != "add" or len(amounts) != 2 or amounts.count(None) != 1:
            return 0
        step += next(a for a in amounts if a is not None)
        name = inputs[amounts.index(None)]
    return step if f"index={place}" in here.text else 0


def _start(loop: Instruction, around: Computation, place: int) -> int | None:
    """Return what a loop's counter begins with, if that is a constant."""
    state = around.instructions[operands(loop)[0]]
    if state.opcode != "tuple":
        return None
    here = around.instructions[operands(state)[place]]
    while here.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
        here = around.instructions[operands(here)[0]]
    return _constant(here)


def named(instruction: Instruction, what: str) -> str:
    """Return the computation that an attribute such as `body` names."""
    return re.search(rf"\b{what}=%?([\w.-]+)", instruction.text)[1]


def operands(instruction: Instruction) -> list[str]:
    """Return the names of an instruction's operands."""
    inside = instruction.text[len(instruction.shape) + len(instruction.opcode) :]
    return _OPERAND.findall(inside[: inside.index(")")])


def _constant(instruction: Instruction) -> int | None:
    found = re.search(r"constant\((-?\d+)\)", instruction.text)
    return int(found[1]) if found else None
