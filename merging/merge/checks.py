"""What is refused of the models' values, in one wording for memory and storage.

A NaN or Inf in an input makes the merged element NaN (`kernels.merge`), so looking for
them takes no pass over the inputs: only where the result is not finite are the inputs
looked at again, to name them.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from merging.runtime import tree
from merging.runtime.errors import UserError


def refuse_dtypes(models: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise a UserError that lists every leaf of a dtype that can't be merged.

    Args:
      models: {name: {path: array, or shape and dtype}}.
    """
    wrong = []
    for name, leaves in models.items():
        for path, leaf in leaves.items():
            kind, dtype = tree.dtype_class(leaf), tree.dtype(leaf)
            if kind == "float" and dtype.itemsize < 2:
                wrong.append(f"{path}: {dtype} in {name!r}")
            elif kind not in ("float", "integer", "bool"):
                wrong.append(f"{path}: {kind} in {name!r}")
            elif dtype == jnp.float64 and not jax.config.jax_enable_x64:
                wrong.append(f"{path}: float64 in {name!r}; set JAX_ENABLE_X64=1")
    if wrong:
        raise UserError(
            "these dtypes cannot be merged; convert to bfloat16, float16 or float32 "
            "first:\n  " + "\n  ".join(wrong)
        )


def refuse_unequal(lines: Iterable[str]) -> None:
    """Raise a UserError for integer or boolean leaves that differ, if there are any.

    Args:
      lines: one for each leaf and model.
    """
    if lines := list(lines):
        raise UserError(
            "integer and boolean leaves must be equal in all models, and are copied; "
            "leave these out of the merge:\n  " + "\n  ".join(lines)
        )


def refuse_nonfinite(
    inputs: Iterable[tuple[str, str]], merged: Iterable[str], dtype: object
) -> None:
    """Raise the UserError of a merged block that is not finite.

    Args:
      inputs: (leaf, model) of every input that is not finite.
      merged: the leaves whose merged values are not.
      dtype: of the merged values.
    """
    if wrong := [f"{leaf} in {model!r}" for leaf, model in inputs]:
        raise UserError("NaN or Inf in the weights of:\n  " + "\n  ".join(wrong))
    raise UserError(
        f"merged weights are beyond the range of {dtype} in {', '.join(merged)}: "
        "choose a wider dtype or a smaller scale."
    )
