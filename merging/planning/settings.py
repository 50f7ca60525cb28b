"""What a plan is told about the work: sizes, assumptions, and the grid."""

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


class Grid(NamedTuple):
    """A grid of merges, and what it takes besides them.

    Attributes:
      sizes: of the family.
      bases: how many, each with experts of its own; one is given, others are trained.
      methods: by name, with their defaults.
      experts_merged: K.
      seeds: runs, each with experts of its own.
      experts: trained for each base and seed.
      expert_steps: of one expert.
      instruction_steps: of each base that is not given.
      multitask_steps: of one multitask model for each base.
      evaluation_rows: scored for a model's result (examples x choices x prompts).
      validation_rows: scored for one trial of λ.
      trials: of λ for each merge that has one.
    """

    sizes: tuple[str, ...]
    bases: int = 2
    methods: tuple[str, ...] = ("ties",)
    experts_merged: tuple[int, ...] = (2, 4, 6, 8)
    seeds: int = 3
    experts: int = 8
    expert_steps: int = 300
    instruction_steps: int = 2000
    multitask_steps: int = 2400
    evaluation_rows: int = 100_000
    validation_rows: int = 2_000
    trials: int = 6

    @property
    def cells(self) -> int:
        """Merges in all."""
        return len(self.sizes) * self.per_size

    @property
    def per_size(self) -> int:
        """Merges of one size."""
        return self.bases * len(self.methods) * len(self.experts_merged) * self.seeds


@dataclasses.dataclass(frozen=True)
class Settings:
    """All of it.

    Attributes:
      mesh: {axis: size}, one of them -1; data goes over slices.
      storage: of a host.
      scoring: a batch.
      training: a step.
      efficiency: the share of a bound that is expected to be reached, for chip-hours.
      grid: None for none.
    """

    mesh: dict[str, int]
    storage: Storage = Storage()
    scoring: Scoring = Scoring()
    training: Training = Training()
    efficiency: float = 0.5
    grid: Grid | None = None


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
    if (grid := found.get("grid")) and max(grid.experts_merged) > grid.experts:
        raise UserError(
            f"grid.experts_merged = {grid.experts_merged}: there are only "
            f"grid.experts = {grid.experts} to merge."
        )
    mesh = dict(values.get("mesh") or {"fsdp": -1})
    return Settings(mesh={"data": slices, **mesh}, **found)


_SECTIONS = {"storage": Storage, "scoring": Scoring, "training": Training}
_SECTIONS |= {"grid": Grid}


def _numbers(values: dict[str, Any]) -> list[tuple[str, float]]:
    return [
        (f"{section}.{name}", value)
        for section in _SECTIONS
        for name, value in (values.get(section) or {}).items()
        if isinstance(value, (int, float))
    ]
