"""What a plan is told about the work: sizes, and what it assumes."""

import dataclasses
from typing import Any, NamedTuple

from merging.runtime import config_keys
from merging.runtime.errors import UserError


class Storage(NamedTuple):
    """Bytes a second that one host reads and writes, in GB/s."""

    read: float = 2.0
    write: float = 1.0


class Scoring(NamedTuple):
    """One batch: rows, and tokens of each."""

    batch: int = 128
    length: int = 1024


class Training(NamedTuple):
    """One step: rows, tokens of each, and the dtypes of the state and the arithmetic.

    AdamW's moments have the parameters' dtype.
    """

    batch: int = 128
    length: int = 1024
    param_dtype: str = "float32"
    dtype: str = "bfloat16"


class Evaluation(NamedTuple):
    """Rows (examples x choices x prompts) of a suite: to test, and to choose λ."""

    rows: int = 100_000
    validation_rows: int = 8_000


@dataclasses.dataclass(frozen=True)
class Settings:
    """All of it.

    Attributes:
      mesh: {axis: size}, one of them -1; data goes over slices.
      storage: of a host.
      scoring: a batch.
      training: a step.
      efficiency: the share of a bound that is expected to be reached, for chip-hours.
      evaluation: of a whole suite, for a grid's hours.
    """

    mesh: dict[str, int]
    storage: Storage = Storage()
    scoring: Scoring = Scoring()
    training: Training = Training()
    efficiency: float = 0.5
    evaluation: Evaluation = Evaluation()


def settings(values: dict[str, Any], slices: int) -> Settings:
    """Return the settings of a plan's config, or the defaults for a merge's.

    Args:
      values: the config as a dict.
      slices: of the topology; the default of the mesh's data axis.

    Raises:
      UserError: numbers that mean nothing, all of them.
    """
    faults = [f"{name} = {value}" for name, value in _numbers(values) if value <= 0]
    if not 0 < values.get("efficiency", 1) <= 1:
        faults.append(f"efficiency = {values['efficiency']} is no share of a bound")
    if faults:
        raise UserError(f"these must be positive: {'; '.join(faults)}.")
    found = {
        name: config_keys.section(kind, values[name], name)
        for name, kind in _SECTIONS.items()
        if values.get(name)
    }
    if "efficiency" in values:
        found["efficiency"] = values["efficiency"]
    mesh = dict(values.get("mesh") or {"fsdp": -1})
    return Settings(mesh={"data": slices, **mesh}, **found)


_SECTIONS = {"storage": Storage, "scoring": Scoring, "training": Training}
_SECTIONS |= {"evaluation": Evaluation}


def _numbers(values: dict[str, Any]) -> list[tuple[str, float]]:
    return [
        (f"{section}.{name}", value)
        for section in _SECTIONS
        for name, value in (values.get(section) or {}).items()
        if isinstance(value, (int, float))
    ]
