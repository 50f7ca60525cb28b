"""What a safetensors file can call a leaf.

A tensor's name (`model.norm.weight`) is one key of our tree, dots and all, so that it
comes back as it was. A path of several keys (`layers/up`) has no such name: what other
programs would read in its place only the model's family says.
"""

from collections.abc import Iterable

from merging.checkpoints.safetensors_header import METADATA, is_name
from merging.runtime.errors import UserError, listed

_MOST, _LINE = 50, "\n  "


def require_tensor_names(paths: Iterable[str]) -> None:
    """Refuse leaves of a nested tree, and names that the format can't hold.

    Raises:
      UserError: some leaves have paths of several keys, or names that no tensor has.
    """
    paths = list(paths)
    unfit = [repr(path) for path in paths if path == METADATA or not is_name(path)]
    if unfit:
        raise UserError(
            "no tensor of a safetensors file can have the names of these leaves; "
            "rename them where they are saved:\n  "
            + listed(unfit, most=_MOST, mark=_LINE)
        )
    nested = [path for path in paths if "/" in path]
    if nested:
        raise UserError(
            f"the leaves of this Orbax tree ({', '.join(nested[:3])}, …) have no names "
            "in a safetensors file. Write Orbax (format=orbax), and give the result "
            "its family's names: merging convert --config "
            "configs/convert/to_safetensors.py --config.input=MERGED "
            "--config.output=CONVERTED"
        )
