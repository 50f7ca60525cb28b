"""Random Llama checkpoints with a tokenizer of their own, made on the spot."""

import json
from pathlib import Path

import jax
import tokenizers

from merging import checkpoints, models
from merging.models.hf import read_config


def byte_level(texts, size, opens=True):
    """Return a byte-level BPE, as Llama 3 has it; `opens`: every text begins with a
    special token."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    if opens:
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
        )
    return made


def write(
    folder: Path,
    tokenizer,
    *,
    seed=0,
    width=32,
    layers=2,
    heads=4,
    context=256,
    scale=1.5,
    vocabulary=None,
):
    """Write config.json, weights with the decoder's leaves, and the tokenizer."""
    described = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary or tokenizer.get_vocab_size(),
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "head_dim": width // heads,
        "intermediate_size": 2 * width,
        "hidden_act": "silu",
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "float32",
    }
    _, config = read_config(json.dumps(described))
    params = jax.tree.map(lambda leaf: scale * leaf, models.init(config, seed))
    checkpoints.save(folder, params)
    (folder / "config.json").write_text(json.dumps(described))
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
    names["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder
