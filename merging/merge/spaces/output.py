"""The adapter that a merge in a space makes, of the merged coordinates."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from merging.checkpoints import Adapter, Writer, adapter_writer
from merging.checkpoints.adapter_writer import Written
from merging.merge.spaces.space import Space
from merging.runtime import processes

_PART = 2**20
# What adapters may be trained for, as PEFT has it.
_TASKS = ("CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
_TASKS += ("FEATURE_EXTRACTION",)


class Output:
    """How a merge's output follows from the merged leaves.

    Args:
      space: that was merged in.
      adapters: in the order they were given; the first has the say on the names.
      dtype: of the factors; None is the first adapter's where they themselves were
        merged, and else float32.
      base: what to call the base; the first adapter's own name of it if None.
    """

    def __init__(
        self,
        space: Space,
        adapters: Mapping[str, Adapter],
        dtype: np.dtype | None,
        base: str | None,
    ):
        self._space, self._adapters, self._base = space, adapters, base
        self._dtype = dtype
        self._embeddings = {
            module
            for adapter in adapters.values()
            for module, of in adapter.modules.items()
            if of.embedding
        }

    def abstract(
        self, merged: Mapping[str, jax.ShapeDtypeStruct]
    ) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the adapter's {tensor: shape and dtype}."""
        found = {}
        for module in self._space.scaling:
            of = next(iter(self._space.coordinates(module)))
            dtype = np.dtype(self._dtype or merged[of].dtype)
            names = adapter_writer.factor_names(module, module in self._embeddings)
            for name, shape in zip(names, self._space.shapes(module), strict=True):
                found[name] = jax.ShapeDtypeStruct(shape, dtype)
        for leaf in self._whole(merged):
            found[adapter_writer.leaf_name(leaf, self._space.scaling)] = merged[leaf]
        return found

    def write(
        self,
        merged: Mapping[str, jax.ShapeDtypeStruct],
        read_into: Callable[[str, int, np.ndarray], None],
        writer: Writer,
    ) -> None:
        """Write this process's part of the adapter.

        Args:
          merged: the merged leaves' {path: shape and dtype}.
          read_into: reads them.
          writer: of the adapter.
        """
        abstract = self.abstract(merged)

        def read(path: str) -> np.ndarray:
            flat = np.empty(math.prod(merged[path].shape), merged[path].dtype)
            read_into(path, 0, flat)
            return flat.reshape(merged[path].shape)

        mine = slice(processes.index(), None, processes.count())
        for module in list(self._space.scaling)[mine]:
            names = adapter_writer.factor_names(module, module in self._embeddings)
            factors = self._space.factors(module, read)
            for name, factor in zip(names, factors, strict=True):
                stored = factor.astype(abstract[name].dtype)
                writer.write(name, 0, stored.reshape(-1))
        for leaf in self._whole(merged)[mine]:
            name = adapter_writer.leaf_name(leaf, self._space.scaling)
            size = math.prod(merged[leaf].shape)
            for start in range(0, size, _PART):
                part = np.empty(min(_PART, size - start), merged[leaf].dtype)
                read_into(leaf, start, part)
                writer.write(name, start, part)

    def config(self) -> bytes:
        """Return its adapter_config.json."""
        first = next(iter(self._adapters.values())).config.record
        modules = {
            module: Written(
                self._space.shapes(module)[0][0], scaling, module in self._embeddings
            )
            for module, scaling in self._space.scaling.items()
        }
        base = next(iter(self._adapters.values())).config.base
        task = first.get("task_type")
        return adapter_writer.config_file(
            modules,
            target_modules=self._names("target_modules") or sorted(modules),
            modules_to_save=self._names("modules_to_save") or (),
            base=self._base or base,
            task_type=task if task in _TASKS else None,
            fan_in_fan_out=bool(first.get("fan_in_fan_out")),
        )

    def _whole(self, merged: Mapping[str, Any]) -> list[str]:
        replaced = {leaf for a in self._adapters.values() for leaf in a.whole}
        return [path for path in merged if path in replaced]

    def _names(self, key: str) -> list[str] | None:
        """Return what any adapter names under a key; None if one has no plain list."""
        found: set[str] = set()
        for adapter in self._adapters.values():
            record = adapter.config.record
            names = record.get(key) or []
            plain = isinstance(names, list) and all(isinstance(n, str) for n in names)
            limits = ("exclude_modules", "layers_to_transform", "layers_pattern")
            if not plain or any(record.get(limit) for limit in limits):
                return None
            found |= set(names)
        return sorted(found)
