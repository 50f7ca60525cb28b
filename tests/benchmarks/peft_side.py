"""PEFT's side of peft_parity.py: adapters that it makes, and what it makes of ours.

  python tests/benchmarks/peft_side.py make FOLDER
  python tests/benchmarks/peft_side.py merge JOBS.json

`make` writes for each case a base, one or two adapters with random factors, and what
PEFT merges them to. `merge` does that for a list of [base, adapter, output], and prints
for each what PEFT warned of. This file needs PyTorch, transformers and peft and nothing
of ours.
"""

import json
import sys
import warnings
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

SIZES = dict(
    vocab_size=96,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)
GPT2 = dict(vocab_size=96, n_embd=48, n_layer=2, n_head=4, n_positions=64)
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj"]
# Name of the case: architecture, dtype, LoraConfig's arguments.
CASES = {
    "plain": ("Llama", "float32", dict(r=8, lora_alpha=16, target_modules=LINEAR)),
    "bfloat16": ("Llama", "bfloat16", dict(r=8, lora_alpha=16, target_modules=LINEAR)),
    "rslora": (
        "Llama",
        "float32",
        dict(r=6, lora_alpha=9, use_rslora=True, target_modules=LINEAR),
    ),
    "patterns": (
        "Llama",
        "float32",
        dict(
            r=8,
            lora_alpha=16,
            target_modules=LINEAR,
            rank_pattern={"q_proj": 4, r"layers\.[12]\.mlp\.up_proj": 12},
            alpha_pattern={"^model.layers.0.self_attn.q_proj": 1, "down_proj": 7},
        ),
    ),
    "rslora and patterns": (
        "Llama",
        "float32",
        dict(
            r=8,
            lora_alpha=16,
            use_rslora=True,
            target_modules=LINEAR,
            rank_pattern={"v_proj": 3},
            alpha_pattern={"v_proj": 5, "o_proj": 2},
        ),
    ),
    "embeddings": (
        "Llama",
        "float32",
        dict(r=4, lora_alpha=8, target_modules=["embed_tokens", "lm_head", "q_proj"]),
    ),
    "modules_to_save": (
        "Llama",
        "float32",
        dict(r=4, lora_alpha=8, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    ),
    "all-linear": (
        "Llama",
        "float32",
        dict(r=2, lora_alpha=2, target_modules="all-linear"),
    ),
    "GPT-2": (
        "GPT2",
        "float32",
        dict(r=4, lora_alpha=8, target_modules=["c_attn", "c_proj", "c_fc"]),
    ),
}


def make(folder: Path) -> None:
    """Write every case: a base, adapters one and two, and the first one merged."""
    for number, (name, (family, dtype, settings)) in enumerate(CASES.items()):
        place = folder / name
        if (place / "merged").exists():
            continue
        torch.manual_seed(number)
        sizes = GPT2 if family == "GPT2" else SIZES
        config = getattr(transformers, f"{family}Config")(**sizes)
        model = transformers.AutoModelForCausalLM.from_config(config)
        model = model.to(getattr(torch, dtype))
        model.save_pretrained(place / "base")
        for adapter in ("one", "two"):
            base = _load(place / "base")
            peft = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **settings))
            for key, weights in peft.named_parameters():
                if "lora_" in key or "modules_to_save" in key:
                    torch.nn.init.normal_(weights, std=0.05)
            peft.save_pretrained(place / adapter)
            if adapter == "one":
                peft.merge_and_unload().save_pretrained(place / "merged")


def merge(jobs: list[list[str]]) -> list[list[str]]:
    """Merge adapters into their bases; return what was warned of in each."""
    found = []
    for base, adapter, output in jobs:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            peft = PeftModel.from_pretrained(_load(base), adapter)
            peft.merge_and_unload().save_pretrained(output)
        texts = [str(one.message) for one in seen]
        words = ("missing", "unexpected", "mismatch")
        found.append([text for text in texts if any(w in text for w in words)])
    return found


def _load(path: Path | str) -> torch.nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype="auto")


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]))
    else:
        print(json.dumps(merge(json.loads(Path(sys.argv[2]).read_text()))))
