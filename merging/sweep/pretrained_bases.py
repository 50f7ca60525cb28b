"""Pretrained bases: checkpoints of a known family, where a sweep makes none itself.

They are read where they lie and never copied: a step that starts from one is keyed by
its content, and refuses it should that have changed.
"""

import dataclasses
import functools
from pathlib import Path

from merging import checkpoints, models
from merging.models import hf as families
from merging.runtime.errors import UserError
from merging.tasks import Tokenizer

# AdamW's small updates vanish in 16-bit parameters: half a unit in the last place of a
# bfloat16 is a four-hundredth of the weight.
_PARAM_DTYPE = "float32"


def decoder(folder: str, tokenizer: Tokenizer, dtype: str) -> models.DecoderConfig:
    """Return a pretrained checkpoint's decoder, as a sweep trains and scores it.

    Args:
      folder: the checkpoint, with its config.json.
      tokenizer: what the suite's texts are written in.
      dtype: of the activations; parameters are float32.

    Raises:
      UserError: as `families.open_model`; a tokenizer that has more ids than the model.
    """
    config = _opened(folder).config
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} ids, but the model in {folder} only "
            f"{config.vocab_size}: give data.tokenizer the model's own."
        )
    return dataclasses.replace(
        config, dtype=dtype, param_dtype=_PARAM_DTYPE, bos_id=tokenizer.bos_id
    )


def digest(folder: str) -> str:
    """Return a hash of what a checkpoint is; see `families.identity`."""
    return families.identity(_opened(folder))


def load(folder: str, expected: str) -> models.Params:
    """Return a pretrained checkpoint's parameters in float32.

    Args:
      folder: the checkpoint.
      expected: the digest that the sweep began with.

    Raises:
      UserError: another digest by now.
    """
    if digest(folder) != expected:
        raise UserError(
            f"{folder} has changed since this sweep began; put the checkpoint back, or "
            "choose another --workdir."
        )
    return families.load(folder, dtype=_PARAM_DTYPE)[1]


def require_folder(folder: str) -> None:
    """Refuse what is no folder; a GGUF file is converted first."""
    if not Path(checkpoints.split(folder)[0]).is_dir():
        raise UserError(
            f"pretrained_bases: {folder!r} is no folder with a checkpoint and its "
            "config.json. SmolLM2's is made by: merging convert "
            f"--config configs/convert/smollm2.py --config.output={folder or 'SMOLLM2'}"
        )


@functools.lru_cache(maxsize=16)
def _opened(folder: str) -> families.Model:
    require_folder(folder)
    return families.open_model(folder)
