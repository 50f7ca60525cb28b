"""Models of three vocabularies, and YAML files that merge them into one."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import inputs
import mergekit_files as files
import numpy as np
from mergekit_files import Yaml
from safetensors.numpy import save_file

FAMILIES = ("vocabularies", "vocabularies, tied")
NAMES = ("base", "expert1", "expert2")
_SHAPE = inputs.SIZES["tiny"]._replace(layers=4)
_HEAD = "lm_head.weight"
# Of each model which letters its tokens begin with, in its own order, how many rows are
# unused, and its added tokens. Of `b` the base knows nothing: two experts do.
_TOKENS = {"base": "asx", "expert1": "bsay", "expert2": "zbs"}
_UNUSED = {"base": 16, "expert1": 0, "expert2": 7}
_ADDED = {"base": ("<s>", "</s>"), "expert1": ("</s>", "<s>", "<call>")}
_ADDED |= {"expert2": ("<s>", "</s>", "<pad>")}
_EACH = 60
_WEIGHT = {"parameters": {"weight": 0.4}}


def make(folder: Path, tied: bool) -> None:
    """Write a base and two experts, each with its own tokenizer."""
    for number, name in enumerate(NAMES):
        random = np.random.default_rng(70 + number)
        words = [f"{letter}{n}" for letter in _TOKENS[name] for n in range(_EACH)]
        tokens = [*_ADDED[name], *words]
        shape = _SHAPE._replace(vocab=len(tokens) + _UNUSED[name])
        config = inputs.config(shape) | {
            "torch_dtype": "float32",
            "tie_word_embeddings": tied,
        }
        leaves = {
            path: random.normal(0, 0.02, size).astype(np.float32)
            for path, size in inputs.tensors(shape)
            if not tied or path != _HEAD
        }
        (folder / name).mkdir(parents=True, exist_ok=True)
        save_file(leaves, folder / name / "model.safetensors", {"format": "pt"})
        (folder / name / "config.json").write_text(json.dumps(config, indent=1))
        described = json.dumps(_tokenizer(tokens, _ADDED[name]))
        (folder / name / "tokenizer.json").write_text(described)
        settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
        settings |= {"bos_token": "<s>", "eos_token": "</s>"}
        (folder / name / "tokenizer_config.json").write_text(json.dumps(settings))


def _tokenizer(tokens: list[str], added: tuple[str, ...]) -> dict:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": tokens.index(token), "content": token, **flags, "special": True}
            for token in added
        ],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {
            "type": "BPE",
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [],
        },
    }


def yamls() -> Iterator[tuple[str, str, Yaml]]:
    """Yield (method, what it says, the file)."""
    union, padded = {"tokenizer_source": "union"}, {"pad_to_multiple_of": 64}
    linear = files.plain("linear") | {"base_model": "base"}
    linear["models"] = [*linear["models"], {"model": "base", **_WEIGHT}]
    for said, source in {
        "base": {"tokenizer_source": "base"},
        "union": union,
        "expert1": {"tokenizer_source": "expert1"},
        "padded union": {"tokenizer": {"source": "union", **padded}},
        "padded base": {"tokenizer": {"source": "base", **padded}},
        "padded": {"tokenizer": padded},
        "both": {**union, "tokenizer": {"source": "base"}},
        "nothing": {},
    }.items():
        yield "linear", f"vocabulary: {said}", linear | source
    for method in ("task_arithmetic", "ties"):
        plain = files.plain(method) | {"base_model": "base"}
        plain.pop("densities")
        yield method, "vocabulary: union", plain | union
        yield method, "vocabulary: expert2", plain | {"tokenizer_source": "expert2"}
    sliced = files.other_models("task_arithmetic") | {"base_model": "base"}
    yield "task_arithmetic", "vocabulary: union, slices", sliced | union
    two = {"models": [{"model": "expert1"}, {"model": "base"}], "base_model": "base"}
    two |= {"parameters": {"t": 0.3}, "dtype": "float32"}
    yield "slerp", "vocabulary: union", two | union
    tied = {"family": FAMILIES[1]}
    yield "linear", "vocabulary: union, tied", linear | union | tied
    narrow = {"tokenizer": {"source": "union", **padded}, "out_dtype": "bfloat16"}
    yield "linear", "vocabulary: padded union, out_dtype", linear | narrow


def in_our_order(
    theirs: Mapping[str, np.ndarray], place: Path, ours: Path
) -> dict[str, np.ndarray]:
    """Return mergekit's leaves with a row for each token in the order that ours has.

    Its order of what it adds to the base's tokens differs from run to run.

    Raises:
      ValueError: the tokens are others.
    """
    ids = [_ids(folder) for folder in (place, ours)]
    if ids[0].keys() != ids[1].keys():
        raise ValueError("other tokens")
    order = [ids[0][token] for token in sorted(ids[1], key=ids[1].__getitem__)]
    rows = theirs["model.embed_tokens.weight"].shape[0]
    order += range(len(order), rows)
    of_tokens = ("model.embed_tokens.weight", _HEAD)
    return {n: x[order] if n in of_tokens else x for n, x in theirs.items()}


def _ids(folder: Path) -> dict[str, int]:
    """Return {token: id} of a tokenizer, as the library that wrote it reads it."""
    import tokenizers

    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
