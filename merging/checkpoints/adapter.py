"""A folder with a LoRA adapter, as PEFT writes it: its config and its tensors.

`adapter_config.json` and `adapter_model.safetensors`; in the latter A and B of each
module, `base_model.model.MODULE.lora_A.weight` (an embedding's: `.lora_embedding_A`),
perhaps with the adapter's name inside, and leaves that are replaced whole.
"""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from merging.checkpoints import adapter_config, files, safetensors
from merging.checkpoints.adapter_config import AdapterConfig
from merging.checkpoints.errors import CorruptCheckpoint, MissingCheckpoint
from merging.checkpoints.location import path_of
from merging.checkpoints.source import SourceFile, sampled_digest
from merging.runtime import tree
from merging.runtime.errors import UserError, listed

PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"
_LONGEST_NAME = 300
_PICKLE = "adapter_model.bin"
_FACTOR = re.compile(r"(.+)\.lora_(?:(embedding)_)?([AB])(?:\.([^.]+))??(\.weight)?")
_BASE_LAYER = re.compile(r"(.+)\.base_layer\.(weight|bias)")


class Module(NamedTuple):
    """A module's factors: tensors A [rank, inputs] and B [outputs, rank].

    Attributes:
      a: name of its A in the file.
      b: of its B.
      rank: r.
      inputs: columns of A; of an embedding, its rows.
      outputs: rows of B.
      scaling: s of s·BA.
      embedding: whether it is one, whose weight is (BA)ᵀ.
    """

    a: str
    b: str
    rank: int
    inputs: int
    outputs: int
    scaling: float
    embedding: bool


class Adapter:
    """A LoRA adapter opened for reading; of its weights only the header was read.

    Attributes:
      uri: its folder.
      config: what its config says.
      tensors: its file, a source of its own.
      modules: {module: its factors}, by the names that PEFT has for them.
      whole: {leaf of the base: the tensor that replaces it}.

    Raises:
      MissingCheckpoint: there is no such folder.
      CorruptCheckpoint: a file is missing or damaged.
      UserError: the adapter changes the sum in a way that is not followed; tensors that
        are no adapter's, or of other shapes than the config says: all are listed.
    """

    def __init__(self, uri: str):
        self.uri = uri
        folder = path_of(uri)
        if not folder.exists():
            raise MissingCheckpoint(uri)
        _require_one(folder)
        self.config: AdapterConfig = adapter_config.read(folder)
        self.tensors = safetensors.SafetensorsSource(str(folder / WEIGHTS))
        self._folder = folder
        self.modules, self.whole = _sorted_out(uri, self.config, self.tensors.abstract)

    def tensor(self, name: str) -> np.ndarray:
        """Return a whole tensor, such as a module's A."""
        leaf = self.tensors.abstract[name]
        found = np.empty(math.prod(leaf.shape), leaf.dtype)
        self.tensors.read_into(name, 0, found)
        return found.reshape(leaf.shape)

    def files(self) -> list[SourceFile]:
        """Return its files, with their digests."""
        content = files.read_small(self._config, 2**30)
        digest = sampled_digest(len(content), b"", lambda at, n: content[at : at + n])
        config = SourceFile(adapter_config.NAME, len(content), digest)
        return [config, *self.tensors.files()]

    def paths(self) -> dict[str, epath.Path]:
        """Return where its files are, by name."""
        return {adapter_config.NAME: self._config, **self.tensors.paths()}

    @property
    def _config(self) -> epath.Path:
        return self._folder / adapter_config.NAME


def is_adapter(uri: str) -> bool:
    """Return whether a path is the folder of an adapter."""
    folder = path_of(uri)
    names = (adapter_config.NAME, WEIGHTS)
    return folder.is_dir() and any((folder / name).exists() for name in names)


def no_base(uri: str) -> UserError:
    """Return the error for an adapter that stands where a model should."""
    hint = adapter_config.base_named(path_of(uri))
    trained = f" It says it was trained on {hint}." if hint else ""
    return UserError(
        f"{uri} is a LoRA adapter, and no model without its base: name both, as "
        f"BASE+{uri}; or the base beside it (base), where experts are merged.{trained}"
    )


def _require_one(folder: epath.Path) -> None:
    """Refuse a folder that holds a model too, or no weights that are read."""
    if not any((folder / name).exists() for name in (adapter_config.NAME, WEIGHTS)):
        raise UserError(
            f"{folder} is no LoRA adapter, as PEFT saves one: it has no "
            f"{adapter_config.NAME}."
        )
    both = [n for n in (safetensors.SINGLE, safetensors.INDEX) if (folder / n).exists()]
    if both:
        raise UserError(
            f"{folder} holds an adapter ({adapter_config.NAME}) and a model "
            f"({both[0]}): put one of them into a folder of its own."
        )
    if (folder / WEIGHTS).exists():
        if not files.lies_in(folder, WEIGHTS):
            raise UserError(
                f"{folder / WEIGHTS} is a link to outside its folder, which is not "
                "read."
            )
        return
    if (folder / _PICKLE).exists():
        raise UserError(
            f"{folder} has its weights in {_PICKLE}, a pickle, which can run code when "
            f"it is opened: save the adapter as {WEIGHTS} first (save_pretrained does)."
        )
    raise CorruptCheckpoint(folder, f"it has no {WEIGHTS}")


def _sorted_out(
    uri: str, config: AdapterConfig, tensors: Mapping[str, jax.ShapeDtypeStruct]
) -> tuple[dict[str, Module], dict[str, str]]:
    """Return the modules' factors and the replaced leaves of a file's tensors."""
    sides: dict[str, dict[str, tuple[str, bool]]] = {}
    whole: dict[str, str] = {}
    names: set[str] = set()
    wrong: list[str] = []
    for tensor in tensors:
        if len(tensor) > _LONGEST_NAME:  # patterns are tried on it
            wrong.append(f"{tensor[:40]}…: a name of {len(tensor)} characters")
            continue
        plain = tensor.removeprefix(PREFIX)
        factor, layer = _FACTOR.fullmatch(plain), _BASE_LAYER.fullmatch(plain)
        if factor and bool(factor[2]) != bool(factor[5]):
            module, embedding, side, name, _ = factor.groups()
            names.add(name or "")
            if side in sides.setdefault(module, {}):
                wrong.append(f"{module}: two lora_{side}")
            sides[module][side] = (tensor, bool(embedding))
        elif "lora_" in plain:
            wrong.append(f"{plain}: no A or B of a LoRA")
        else:
            leaf = f"{layer[1]}.{layer[2]}" if layer else plain
            if leaf in whole:
                wrong.append(f"{leaf}: given twice")
            whole[leaf] = tensor
    if len(names) > 1:
        wrong.append(f"adapters of {len(names)} names; save each for itself")
    modules = {}
    for module, of in sides.items():
        try:
            modules[module] = _module(config, module, of, tensors)
        except ValueError as error:
            wrong.append(f"{module}: {error}")
    if not tensors:
        wrong.append("no tensors at all")
    if wrong:
        raise UserError(
            f"{uri}: its tensors are not those of the LoRA that its "
            f"{adapter_config.NAME} speaks of: {listed(wrong)}."
        )
    return modules, whole


def _module(
    config: AdapterConfig,
    module: str,
    sides: Mapping[str, tuple[str, bool]],
    tensors: Mapping[str, jax.ShapeDtypeStruct],
) -> Module:
    """Return a module's factors, or raise a ValueError for what is wrong with them."""
    if sides.keys() != {"A", "B"}:
        raise ValueError(f"lora_{next(iter(sides))} alone")
    (a, embedding), (b, of_b) = sides["A"], sides["B"]
    one, other = tensors[a], tensors[b]
    if embedding != of_b:
        raise ValueError("A of an embedding with B of none")
    for leaf in (one, other):
        if tree.dtype_class(leaf) != "float" or leaf.dtype.itemsize < 2:
            raise ValueError(f"factors of {leaf.dtype}")
        if len(leaf.shape) != 2:
            raise ValueError(f"factors of {len(leaf.shape)} axes, not of a matrix")
        if 0 in leaf.shape:
            raise ValueError("factors that are empty (a part of a sharded training?)")
    rank = config.rank_of(module)
    if one.shape[0] != rank or other.shape[1] != rank:
        raise ValueError(
            f"A {list(one.shape)} and B {list(other.shape)} are not of rank {rank}"
        )
    scaling = config.scaling_of(module)
    inputs, outputs = one.shape[1], other.shape[0]
    return Module(a, b, rank, inputs, outputs, scaling, embedding)
