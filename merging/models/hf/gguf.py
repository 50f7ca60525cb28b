"""A llama in a GGUF file, seen as the Hugging Face folder that it was made from.

llama.cpp names tensors otherwise and turns neighbours of a head together, so its
queries and keys have their rows interleaved; here they are put back in halves.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from merging.checkpoints.gguf import GgufFile, open_gguf
from merging.checkpoints.source import SourceFile, sampled_digest
from merging.models.config import DecoderConfig
from merging.models.hf import gguf_tokenizer
from merging.models.hf.family import Leaf, leaves
from merging.models.hf.fields import Fields
from merging.models.hf.llama import LLAMA
from merging.runtime.errors import UserError, listed, nearest

# GGUF architecture -> what it is here.
ARCHITECTURES = {"llama": LLAMA}

_SIZES = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}
# Said twice, and held against the others.
_IMPLIED = {"rope.dimension_count": "head_dim", "attention.value_length": "head_dim"}
_TENSORS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_INTERLEAVED = ("attn_q", "attn_k")
_SHOWN, _MOST_FAULTS = 100, 50  # characters of a value, and lines, in a message


class GgufSource:
    """A GGUF file's tensors under the names, and in the order of rows, of Hugging Face.

    Args:
      uri: a path, or `package:NAME`.

    Raises:
      UserError: another architecture, metadata that the decoder can't follow, tensors
        that are missing, extra, of other shapes or in an unknown quantisation: all of
        them listed.
    """

    format = "gguf"

    def __init__(self, uri: str):
        self.uri, self._file = uri, open_gguf(uri)
        self._values, faults = _config(self._file)
        if not faults:
            self._config = DecoderConfig(**LLAMA.decoder(Fields(self._values)))
            self._leaves = leaves(LLAMA, self._config)
            wanted = _wanted(self._leaves)
            faults = _tensor_faults(self._file, wanted)
        if faults:
            raise UserError(
                f"{self._file.path} is no model that can be imported:\n  "
                + listed(faults, most=_MOST_FAULTS, mark="\n  ")
            )
        self.abstract = {
            name: jax.ShapeDtypeStruct(shape, np.float32)
            for name, shape in wanted.items()
        }

    def read_into(self, path: str, start: int, out: np.ndarray) -> None:
        """Fill `out` with elements [start, start + len) of a tensor, row-major."""
        columns = self.abstract[path].shape[-1]
        first, last = start // columns, -(-(start + len(out)) // columns)
        name = _stored(path)
        rows = np.arange(first, last)
        if name.split(".")[-2] in _INTERLEAVED:
            rows = interleaved(rows, self._config.head_dim)
        values = self._file.rows(name, rows).reshape(-1)
        out[:] = values[start - first * columns :][: len(out)]

    def files(self) -> list[SourceFile]:
        """Return the file, with a sampled digest."""
        path = Path(self._file.path)
        size = path.stat().st_size

        def read(at: int, length: int) -> bytes:
            with path.open("rb") as file:
                file.seek(at)
                return file.read(length)

        return [SourceFile(path.name, size, sampled_digest(size, b"", read))]

    def described(self) -> bytes:
        """Return the model's config.json."""
        return (json.dumps(self._values, indent=2, sort_keys=True) + "\n").encode()

    def tokenizer_files(self) -> dict[str, bytes]:
        """Return {name: content}; nothing if the tokenizer can't be rebuilt."""
        return gguf_tokenizer.files(self._file)


def interleaved(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Return where rows of Hugging Face's query or key lie in llama.cpp's.

    Row j of a head's first half is row 2j there, row j of its second half 2j + 1.
    """
    half = head_dim // 2
    within = rows % head_dim
    return rows - within + 2 * (within % half) + within // half


def _config(file: GgufFile) -> tuple[dict[str, Any], list[str]]:
    """Return a config.json's values, and what in the metadata can't be followed."""
    meta = file.metadata
    architecture = meta.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        said = str(architecture)[:_SHOWN]
        raise nearest(f"architecture in {file.path}", said, ARCHITECTURES)
    prefix = f"{architecture}."
    given = {k.removeprefix(prefix): v for k, v in meta.items() if k.startswith(prefix)}
    values = {_SIZES[k]: _shortest(v) for k, v in given.items() if k in _SIZES}
    fields = Fields(values)
    for key, value in given.items():
        if key not in _SIZES and key not in _IMPLIED:
            fields.wrong(f"{prefix}{key} = {_shown(value)} is not understood here")
    values |= {
        "architectures": [LLAMA.architecture],
        "model_type": "llama",
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in file.shapes,
        "torch_dtype": "float32",
        "attention_bias": False,
        "mlp_bias": False,
    }
    embedding = file.shapes.get("token_embd.weight")
    values.setdefault("vocab_size", embedding[0] if embedding else 0)
    for token in ("bos", "eos"):
        key = f"tokenizer.ggml.{token}_token_id"
        if type(found := meta.get(key)) is int:
            values[f"{token}_token_id"] = found
        elif found is not None:
            fields.wrong(f"{key} = {_shown(found)} is no whole number")
    LLAMA.decoder(fields)
    if not fields.faults:
        values.setdefault("head_dim", fields.shape(tied=False)["head_dim"])
        for key, name in _IMPLIED.items():
            if key in given and given[key] != values[name]:
                said = _shown(given[key])
                fields.wrong(f"{prefix}{key} = {said}, and {name} is {values[name]}")
    return values, fields.faults


def _shown(value: Any) -> str:
    """Return a value of the metadata in a few words."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return repr(value[:_SHOWN] if isinstance(value, str) else value)


def _shortest(value: Any) -> Any:
    """Return a float32 as the number that was meant: 1e-05, not 9.9999997e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _wanted(table: Mapping[str, Leaf]) -> dict[str, tuple[int, ...]]:
    """Return {Hugging Face's name: shape} of all tensors of a model."""
    return {name: leaf.tensor_shape for leaf in table.values() for name in leaf.tensors}


def _tensor_faults(file: GgufFile, wanted: Mapping[str, tuple[int, ...]]) -> list[str]:
    expected = {_stored(name): shape for name, shape in wanted.items()}
    faults = [f"{n}: missing" for n in sorted(expected.keys() - file.shapes.keys())]
    extra = sorted(file.shapes.keys() - expected.keys())
    faults += [f"{name}: no tensor of a llama's" for name in extra]
    both = sorted(expected.keys() & file.shapes.keys())
    for name in both:
        if file.shapes[name] != expected[name]:
            faults.append(
                f"{name}: shape {file.shapes[name]}, the metadata makes it "
                f"{expected[name]}"
            )
    return faults + file.unreadable(both)


def _stored(name: str) -> str:
    """Return llama.cpp's name: of model.layers.3.mlp.up_proj, blk.3.ffn_up."""
    stem = name.removesuffix(".weight")
    if not stem.startswith("model.layers."):
        return f"{_TENSORS[stem]}.weight"
    layer, _, part = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_TENSORS[part]}.weight"
