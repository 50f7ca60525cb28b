"""The tokenizer in a GGUF file, written as the files that Hugging Face's library reads.

Byte-level BPE only (`tokenizer.ggml.model` is "gpt2"), and with the ways of cutting a
text into words that are known here; a wrong cut would give other tokens in silence.
"""

import json
import warnings
from typing import Any

from merging.checkpoints.gguf import GgufFile
from merging.runtime.errors import UserError

# `tokenizer.ggml.pre` -> whether every digit is a word of its own.
_CUTS = {"gpt-2": False, "smollm": True}
# `tokenizer.ggml.token_type`: such tokens are never made of text by merges.
_CONTROL, _USER_DEFINED = 3, 4
_SHOWN = 100  # characters of what a message quotes
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def files(file: GgufFile) -> dict[str, bytes]:
    """Return {name: content} of the tokenizer's files.

    Nothing, with a warning, for a kind that can't be rebuilt here.

    Raises:
      UserError: tokens and merges that are no BPE.
    """
    meta = file.metadata
    kind, cut = (meta.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if kind != "gpt2" or not isinstance(cut, str) or cut not in _CUTS:
        said = [repr(value)[:_SHOWN] for value in (kind, cut)]
        warnings.warn(
            f"{file.path}: a tokenizer of kind {said[0]} that cuts as {said[1]} can't "
            f"be rebuilt here (gpt2 with {', '.join(_CUTS)} can); take its files from "
            "the model's own folder.",
            stacklevel=2,
        )
        return {}
    tokens = meta.get("tokenizer.ggml.tokens")
    types = meta.get("tokenizer.ggml.token_type")
    merges = meta.get("tokenizer.ggml.merges")
    try:
        described = _bpe(tokens, types, merges, split_digits=_CUTS[cut])
    except BaseException as error:  # the library raises Exception itself, and panics
        if not isinstance(error, Exception) and "Panic" not in type(error).__name__:
            raise
        reason = repr(str(error)[:_SHOWN])
        raise UserError(f"{file.path}: its tokenizer is damaged: {reason}") from None
    return {
        "tokenizer.json": described.encode(),
        "tokenizer_config.json": _settings(meta, tokens).encode(),
    }


def _bpe(
    tokens: list[str], types: list[int], merges: list[str], *, split_digits: bool
) -> str:
    """Return tokenizer.json."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    if len(set(tokens)) != len(tokens) or len(types) != len(tokens):
        raise ValueError("tokens appear twice, or their types don't cover them")
    pairs = [tuple(merge.split(" ")) for merge in merges]
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer = byte_level
    if split_digits:
        digits = pre_tokenizers.Digits(individual_digits=True)
        made.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    made.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, types, strict=True):
        if kind == _CONTROL:
            made.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif kind == _USER_DEFINED:
            made.add_tokens([AddedToken(token, normalized=False)])
    return made.to_str(pretty=True)


def _settings(meta: dict[str, Any], tokens: list[str]) -> str:
    """Return tokenizer_config.json: special tokens and the chat template."""
    found: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": bool(meta.get("tokenizer.ggml.add_bos_token", False)),
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
    }
    for ours, theirs in _SPECIAL.items():
        number = meta.get(f"tokenizer.ggml.{theirs}_token_id")
        if type(number) is int and 0 <= number < len(tokens):
            found[f"{ours}_token"] = tokens[number]
    if isinstance(template := meta.get("tokenizer.chat_template"), str):
        found["chat_template"] = template
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"
