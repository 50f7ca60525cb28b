"""What is refused of the models' values, in one wording for memory and storage.

A NaN or Inf in an input makes the merged element NaN (`kernels.merge`), so looking for
them takes no pass over the inputs: only where the result is not finite are the inputs
looked at again, to name them.
"""

from collections.abc import Iterable

from merging.runtime.errors import UserError


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
