"""A tiny random Llama, and the GGUF file that llama.cpp's converter makes of it."""

from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Stored

HEADS, KV_HEADS, HEAD_DIM, WIDTH, MLP, LAYERS, VOCAB = 4, 2, 8, 32, 64, 2, 40
MERGES = ["h e", "l l", "he ll", "1 2"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENS = [*SPECIAL, *"0123456789abcdefghijklmnopqrst wz".replace(" ", "Ġ")]
TOKENS += ["he", "ll", "hell", "12"]
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Return {Hugging Face's name: float32}."""
    rng = np.random.default_rng(seed)
    keys = KV_HEADS * HEAD_DIM
    shapes = {"model.embed_tokens": (VOCAB, WIDTH), "model.norm": (WIDTH,)}
    for i in range(LAYERS):
        layer = {
            "input_layernorm": (WIDTH,),
            "post_attention_layernorm": (WIDTH,),
            "self_attn.q_proj": (WIDTH, WIDTH),
            "self_attn.k_proj": (keys, WIDTH),
            "self_attn.v_proj": (keys, WIDTH),
            "self_attn.o_proj": (WIDTH, WIDTH),
            "mlp.gate_proj": (MLP, WIDTH),
            "mlp.up_proj": (MLP, WIDTH),
            "mlp.down_proj": (WIDTH, MLP),
        }
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return {
        f"{name}.weight": rng.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def theirs(name: str) -> str:
    """Return a tensor's name in GGUF, as the package's own table has it."""
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    return table.get_name(name, (".weight",))


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Return a query or key with its rotary halves interleaved."""
    halves = weight.reshape(heads, 2, -1, weight.shape[-1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write(
    path,
    model: dict[str, np.ndarray],
    *,
    architecture: str = "llama",
    stored: Stored = Stored.F32,
    drop: tuple[str, ...] = (),
    tensors: dict[str, tuple[np.ndarray, Stored]] | None = None,
    metadata: dict[str, Any] | None = None,
    cut: str = "smollm",
) -> None:
    """Write a GGUF file: matrices stored as asked for, the rest as float32.

    Args:
      path: the file.
      model: as `weights`.
      architecture: what it says it is.
      stored: how matrices are stored.
      drop: GGUF names to leave out.
      tensors: more of them, already stored, by GGUF name.
      metadata: more values, or others than it would have.
      cut: `tokenizer.ggml.pre`.
    """
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(100_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cut)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for key, value in (metadata or {}).items():
        kind = gguf.GGUFValueType.UINT32
        if type(value) is not int:
            kind = gguf.GGUFValueType.get_type(value)
        writer.kv_data[0][key] = gguf.gguf_writer.GGUFValue(value, kind)
    for name, weight in model.items():
        if theirs(name) in drop:
            continue
        heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2])
        values = permuted(weight, heads) if heads else weight
        kind = stored if weight.ndim == 2 else Stored.F32
        values = gguf.quants.quantize(values, kind)
        writer.add_tensor(theirs(name), values, raw_dtype=kind)
    for name, (values, kind) in (tensors or {}).items():
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
