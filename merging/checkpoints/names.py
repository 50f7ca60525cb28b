"""Leaf paths and tensor names: the one place where one becomes the other.

A tensor name of a safetensors file (`model.norm.weight`) is one key of our tree, dots
and all, so that it comes back as it was. An Orbax tree's path (`layers/attn/wq`) is
written as `layers.attn.wq`, as no tensor name may look like a folder.
"""

from collections.abc import Iterable

from merging.runtime.errors import UserError


def tensor_names(paths: Iterable[str]) -> dict[str, str]:
    """Return {path: name of its tensor}.

    Raises:
      UserError: two paths would have one name; lists them.
    """
    names = {path: path.replace("/", ".") for path in paths}
    taken: dict[str, str] = {}
    clashes = []
    for path, name in names.items():
        if name in taken:
            clashes.append(f"{path} and {taken[name]} would both be {name}")
        taken[name] = path
    if clashes:
        raise UserError(
            "these leaves cannot be told apart in a safetensors file; write Orbax:\n  "
            + "\n  ".join(clashes)
        )
    return names
