"""Tiny random models of every family, made and judged by transformers.

  python tests/benchmarks/family_models.py make FOLDER
  python tests/benchmarks/family_models.py judge FOLDER EXPORTED

`make` writes for each family config.json, model.safetensors and case.safetensors: what
the model was given, with and without padding, and the logits it returned. `judge`
reads the same models after they went through our decoder's layout and back, and prints
a JSON line for each. This file needs PyTorch and transformers and nothing of ours.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

LENGTH, PADDED = 14, 18
SIZES = dict(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=20,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
GEMMA = dict(head_dim=6, query_pre_attn_scalar=10, sliding_window=5)
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}
# Name of the case: architecture, and what differs from SIZES.
CASES = {
    "llama2": ("Llama", dict(num_key_value_heads=4)),
    "llama3": ("Llama", dict(head_dim=8, rope_parameters=LLAMA3)),
    "smollm2": (
        "Llama",
        dict(
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        ),
    ),
    "mistral": ("Mistral", dict(sliding_window=5, head_dim=6)),
    "qwen2": ("Qwen2", dict(tie_word_embeddings=True)),
    "qwen2_window": (
        "Qwen2",
        dict(use_sliding_window=True, sliding_window=5, max_window_layers=1),
    ),
    "qwen3": ("Qwen3", dict(head_dim=6)),
    "gemma2": (
        "Gemma2",
        GEMMA | dict(attn_logit_softcapping=3.0, final_logit_softcapping=8.0),
    ),
    "gemma3": (
        "Gemma3",
        GEMMA
        | dict(
            num_hidden_layers=3,
            num_key_value_heads=1,
            sliding_window_pattern=3,
            rope_parameters=GEMMA3_ROPE,
        ),
    ),
}


def model_of(family: str, settings: dict) -> torch.nn.Module:
    """Return a model whose every weight matters: no gain is one, no bias nought."""
    name = "Gemma3Text" if family == "Gemma3" else family
    config = getattr(transformers, f"{name}Config")(**(SIZES | settings))
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 2:
                scale = 1.0 if "embed" in name else 1.5 / weight.shape[1] ** 0.5
                weight.copy_(scale * noise)
            elif "norm" in name and not family.startswith("Gemma"):
                weight.copy_(1 + 0.3 * noise)
            else:
                weight.copy_(0.3 * noise)
    return model


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids [2, LENGTH], and [2, PADDED] with mask, padded on the right."""
    generator = torch.Generator().manual_seed(8)
    ids = torch.randint(3, SIZES["vocab_size"], (2, LENGTH), generator=generator)
    return ids, torch.nn.functional.pad(ids, (0, PADDED - LENGTH))


@torch.no_grad()
def logits_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the logits of the real tokens, [2, LENGTH, vocabulary] each."""
    ids, padded = inputs()
    mask = (torch.arange(PADDED) < LENGTH).long().expand(2, -1)
    return {
        "logits": model(ids).logits,
        "padded_logits": model(padded, attention_mask=mask).logits[:, :LENGTH].clone(),
    }


def make(folder: Path) -> None:
    """Write every case."""
    for name, (family, settings) in CASES.items():
        model = model_of(family, settings)
        model.save_pretrained(folder / name)
        (folder / name / "generation_config.json").unlink()
        ids, padded = inputs()
        case = {"ids": ids.int(), "padded_ids": padded.int(), **logits_of(model)}
        save_file(case, folder / name / "case.safetensors")
        for file in (folder / name).iterdir():
            file.chmod(0o644)


def judge(folder: Path, exported: Path) -> None:
    """Print for each exported model whether transformers finds it unchanged."""
    for name in CASES:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            exported / name, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        case = load_file(folder / name / "case.safetensors")
        before = load_file(folder / name / "model.safetensors")
        after = load_file(exported / name / "model.safetensors")
        loaded = model.state_dict()
        same = before.keys() == after.keys() and all(
            before[k].dtype == after[k].dtype
            and torch.equal(before[k].view(torch.uint8), after[k].view(torch.uint8))
            and torch.equal(before[k].view(torch.uint8), loaded[k].view(torch.uint8))
            for k in before
        )
        far = max(float((x - case[k]).abs().max()) for k, x in logits_of(model).items())
        print(json.dumps({"name": name, "identical": same, "logits": far}))


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    command, *folders = sys.argv[1:]
    {"make": make, "judge": judge}[command](*map(Path, folders))
