"""The models of a merge, opened and held against each other before a weight is read."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from merging.checkpoints import Source, open_checkpoint
from merging.runtime import tree
from merging.runtime.errors import UserError

# What the base is called beside the experts' names.
BASE = "the base"
# What Hugging Face's models call their output weights; not there where they are tied.
_HEAD = "lm_head.weight"


class Inputs(NamedTuple):
    """Checkpoints that can be merged.

    Attributes:
      base: None if there is none.
      experts: by name, sorted: sums then round alike whatever order they came in.
      order: the place of each in the order they were given.
    """

    base: Source | None
    experts: dict[str, Source]
    order: tuple[int, ...]

    @property
    def sources(self) -> list[Source]:
        """All of them, the base first."""
        return [*([self.base] if self.base else []), *self.experts.values()]

    @property
    def names(self) -> list[str]:
        """What to call them in messages."""
        return [*([BASE] if self.base else []), *self.experts]

    @property
    def abstracts(self) -> list[dict[str, jax.ShapeDtypeStruct]]:
        """{path: shape and dtype} of each."""
        return [tree.flatten(source.abstract) for source in self.sources]


def open_inputs(base: str | None, experts: Mapping[str, str]) -> Inputs:
    """Open the checkpoints and check that they can be merged.

    Raises:
      UserError: one can't be opened, they differ in leaves or shapes, or hold a dtype
        that cannot be merged; each lists every offender.
    """
    if not experts:
        raise UserError("no experts: name at least one checkpoint to merge (experts).")
    given = list(experts)
    names = sorted(experts)
    inputs = Inputs(
        open_checkpoint(base) if base else None,
        {name: open_checkpoint(experts[name]) for name in names},
        tuple(given.index(name) for name in names),
    )
    _require_same_leaves(inputs)
    _require_known_dtypes(inputs)
    return inputs


def expert_names(uris: Sequence[str]) -> dict[str, str]:
    """Return {name: uri}, named after the last folder that tells them apart.

    A checkpoint given twice is merged twice, under two names.
    """
    parts = {uri: [p for p in uri.rstrip("/").split("/") if p] for uri in uris}
    depth = 1
    while depth < max((len(p) for p in parts.values()), default=1):
        short = {"/".join(p[-depth:]) for p in parts.values()}
        if len(short) == len(parts):
            break
        depth += 1
    names: dict[str, str] = {}
    for uri in uris:
        name = stem = "/".join(parts[uri][-depth:]) or uri
        times = 1
        while name in names:
            times += 1
            name = f"{stem}#{times}"
        names[name] = uri
    return names


def _require_same_leaves(inputs: Inputs) -> None:
    trees = zip(inputs.names, (s.abstract for s in inputs.sources), strict=True)
    lines = tree.differences(dict(trees))
    if not lines:
        return
    advice = ["Merge models of one architecture."]
    heads = [_HEAD in leaves for leaves in inputs.abstracts]
    if any(heads) and not all(heads):
        advice.append(
            f"Where there is no {_HEAD}, the output weights are tied to the embedding:"
            " save that model with them untied, or the others with them tied."
        )
    if any("embed" in line and ": shape" in line for line in lines):
        advice.append("For vocabularies of two sizes, resize the embeddings first.")
    raise UserError(
        "the models do not have the same leaves:\n  "
        + "\n  ".join(lines)
        + "\n"
        + " ".join(advice)
    )


def _require_known_dtypes(inputs: Inputs) -> None:
    wrong = []
    for name, leaves in zip(inputs.names, inputs.abstracts, strict=True):
        for path, leaf in leaves.items():
            kind, dtype = tree.dtype_class(leaf), jnp.dtype(leaf.dtype)
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
