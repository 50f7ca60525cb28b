"""Checkpoints to merge: a Llama-shaped base and experts, the same bits every time.

Weights are noise of the right sizes: base ~ N(0, .02), its norms 1 + that, expert k =
bf16(base + N(0, .002)). Made piece by piece, so memory does not grow with the model.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

BF16 = np.dtype(ml_dtypes.bfloat16)
_PIECE = 2**22  # elements
_RECIPE = 1  # of the numbers below; another one makes all inputs anew
_SEED = 1234


class Shape(NamedTuple):
    """A Llama's sizes; its LM head is its own."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    vocab: int

    @property
    def parameters(self) -> int:
        """How many numbers it has."""
        return sum(int(np.prod(shape)) for _, shape in tensors(self))


class Models(NamedTuple):
    """Folders of one base and its experts."""

    base: Path
    experts: tuple[Path, ...]


# 2x grows by layers only, 4x and 2GB by wider layers too: their largest tensors grow.
SIZES = {
    "tiny": Shape(64, 2, 128, 4, 512),
    "small": Shape(512, 8, 2048, 8, 8000),
    "1x": Shape(1024, 16, 4096, 16, 32000),
    "2x": Shape(1024, 36, 4096, 16, 32000),
    "4x": Shape(2048, 18, 8192, 16, 32000),
    "2GB": Shape(2048, 13, 8192, 16, 32000),
}


def tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield every tensor's name, as Hugging Face's Llama has it, and shape."""
    hidden, inner = shape.hidden, shape.intermediate
    yield "model.embed_tokens.weight", (shape.vocab, hidden)
    for i in range(shape.layers):
        layer = f"model.layers.{i}"
        yield f"{layer}.input_layernorm.weight", (hidden,)
        for name in "qkvo":
            yield f"{layer}.self_attn.{name}_proj.weight", (hidden, hidden)
        yield f"{layer}.post_attention_layernorm.weight", (hidden,)
        yield f"{layer}.mlp.gate_proj.weight", (inner, hidden)
        yield f"{layer}.mlp.up_proj.weight", (inner, hidden)
        yield f"{layer}.mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (shape.vocab, hidden)


def make(workdir: Path, shape: Shape, count: int) -> Models:
    """Return a base and its experts, made now unless the workdir has them.

    A stamp beside each model says how it was made and how long its file is.
    """
    folder = workdir / "inputs" / "_".join(f"{k[0]}{v}" for k, v in _fields(shape))
    models = Models(
        folder / "base", tuple(folder / f"expert{k}" for k in range(1, count + 1))
    )
    for number, path in enumerate([models.base, *models.experts]):
        if not _is_made(path, shape, number):
            print(f"making {path}, {2 * shape.parameters / 1e9:.2f} GB", flush=True)
            _make_model(path, shape, number, models.base)
    return models


def _fields(shape: Shape) -> list[tuple[str, int]]:
    return sorted(shape._asdict().items())


def _stamp(path: Path, shape: Shape, number: int) -> dict:
    weights = path / "model.safetensors"
    size = weights.stat().st_size if weights.exists() else 0
    sizes = dict(_fields(shape))
    return {"recipe": _RECIPE, "seed": _SEED, "model": number, "bytes": size, **sizes}


def _is_made(path: Path, shape: Shape, number: int) -> bool:
    stamp = path.with_suffix(".stamp.json")
    return stamp.exists() and json.loads(stamp.read_text()) == _stamp(
        path, shape, number
    )


def _make_model(path: Path, shape: Shape, number: int, base: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    stamp = path.with_suffix(".stamp.json")
    stamp.unlink(missing_ok=True)
    (path / "config.json").write_text(json.dumps(config(shape), indent=2) + "\n")
    header = _header(shape)
    with (
        open(path / "model.safetensors", "wb") as out,
        open(base / "model.safetensors", "rb") as under,
    ):
        out.write(header)
        under.seek(len(header))
        for place, (name, dims) in enumerate(tensors(shape)):
            random = np.random.Generator(np.random.PCG64([_SEED, number, place]))
            mean = 1.0 if "norm" in name else 0.0
            size = int(np.prod(dims))
            for start in range(0, size, _PIECE):
                length = min(_PIECE, size - start)
                noise = random.standard_normal(length, np.float32)
                if number == 0:
                    values = noise * np.float32(0.02) + np.float32(mean)
                else:
                    values = np.frombuffer(under.read(2 * length), BF16)
                    values = values.astype(np.float32) + noise * np.float32(0.002)
                out.write(values.astype(BF16).tobytes())
        out.flush()
        os.fsync(out.fileno())
    stamp.write_text(json.dumps(_stamp(path, shape, number), indent=1))


def _header(shape: Shape) -> bytes:
    """Return a safetensors file's beginning; the tensors follow in `tensors`' order."""
    entries: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dims in tensors(shape):
        start, end = end, end + 2 * int(np.prod(dims))
        entries[name] = {
            "dtype": "BF16",
            "shape": list(dims),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def config(shape: Shape) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "head_dim": shape.hidden // shape.heads,
        "vocab_size": shape.vocab,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }
