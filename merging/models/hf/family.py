"""What a family is, and what its checkpoints call the decoder's leaves."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from merging.models.config import DecoderConfig
from merging.models.functional import abstract
from merging.models.hf.fields import Fields
from merging.runtime import tree
from merging.runtime.errors import UserError

# A weight of PyTorch's Linear is [out, in]; ours multiply from the right.
_TRANSPOSED = ("query", "key", "value", "output", "gate", "up", "down")
_LAYER = "model.layers.{}."

# Names that the families share; `{}` is the layer.
NAMES = {
    "embed": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "head": "lm_head.weight",
    "layers/attention_norm": _LAYER + "input_layernorm.weight",
    "layers/mlp_norm": _LAYER + "post_attention_layernorm.weight",
    "layers/query": _LAYER + "self_attn.q_proj.weight",
    "layers/key": _LAYER + "self_attn.k_proj.weight",
    "layers/value": _LAYER + "self_attn.v_proj.weight",
    "layers/output": _LAYER + "self_attn.o_proj.weight",
    "layers/query_bias": _LAYER + "self_attn.q_proj.bias",
    "layers/key_bias": _LAYER + "self_attn.k_proj.bias",
    "layers/value_bias": _LAYER + "self_attn.v_proj.bias",
    "layers/query_norm": _LAYER + "self_attn.q_norm.weight",
    "layers/key_norm": _LAYER + "self_attn.k_norm.weight",
    "layers/gate": _LAYER + "mlp.gate_proj.weight",
    "layers/up": _LAYER + "mlp.up_proj.weight",
    "layers/down": _LAYER + "mlp.down_proj.weight",
}
# Buffers that old checkpoints hold and that follow from the config.
_COMPUTED = re.compile(r"\.rotary_emb\.inv_freq$")


class Family(NamedTuple):
    """A family of models.

    Attributes:
      name: ours.
      architecture: what config.json calls it.
      decoder: its config.json as fields of a `DecoderConfig`.
      names: {path of ours: tensor's name}, a superset of what one model has.
    """

    name: str
    architecture: str
    decoder: Callable[[Fields], dict[str, Any]]
    names: Mapping[str, str] = NAMES


class Leaf(NamedTuple):
    """One of our leaves, and the foreign tensors that it is made of.

    Attributes:
      shape: ours.
      dtype: ours.
      tensors: names, one for each layer of a stacked leaf.
      stacked: whether the first axis is the layers'.
      transposed: whether each tensor is [out, in] where ours is [in, out].
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    tensors: tuple[str, ...]
    stacked: bool
    transposed: bool

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """The shape of each tensor."""
        shape = self.shape[1:] if self.stacked else self.shape
        return shape[::-1] if self.transposed else shape


def leaves(family: Family, config: DecoderConfig) -> dict[str, Leaf]:
    """Return {path: leaf} of a model, with the dtypes of its config."""
    found = {}
    for path, leaf in tree.flatten(abstract(config)).items():
        name = family.names[path]
        stacked = "{}" in name
        found[path] = Leaf(
            tuple(leaf.shape),
            np.dtype(leaf.dtype),
            tuple(
                name.format(layer) for layer in range(config.layers if stacked else 1)
            ),
            stacked,
            path.rpartition("/")[2] in _TRANSPOSED,
        )
    return found


def fitted(
    table: Mapping[str, Leaf], tensors: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, Leaf]:
    """Return the table with the tensors' own dtypes.

    Args:
      table: of the model that config.json describes.
      tensors: what the checkpoint holds.

    Raises:
      UserError: tensors that are missing, that the family doesn't have, of another
        shape, or of several dtypes in one stack; every one is listed.
    """
    wanted = {name: leaf for leaf in table.values() for name in leaf.tensors}
    missing = sorted(wanted.keys() - tensors.keys())
    extra = [n for n in tensors.keys() - wanted.keys() if not _COMPUTED.search(n)]
    lines = [f"{name}: missing" for name in missing]
    lines += [f"{name}: no tensor of this model" for name in sorted(extra)]
    for name in sorted(wanted.keys() & tensors.keys()):
        shape, expected = tuple(tensors[name].shape), wanted[name].tensor_shape
        if shape != expected:
            lines.append(f"{name}: shape {shape}, config.json makes it {expected}")
    result = {}
    for path, leaf in table.items():
        dtypes = {tensors[n].dtype for n in leaf.tensors if n in tensors}
        if len(dtypes) > 1:
            named = ", ".join(sorted(map(str, dtypes)))
            lines.append(f"{path}: its layers have several dtypes, {named}")
        strange = [d for d in dtypes if tree.dtype_class(np.empty(0, d)) != "float"]
        lines += [f"{path}: {dtype} is no dtype of weights" for dtype in strange]
        if dtypes:
            result[path] = leaf._replace(dtype=np.dtype(min(dtypes, key=str)))
    if lines:
        raise UserError(
            "the tensors are not those of config.json's model:\n  " + "\n  ".join(lines)
        )
    return result
