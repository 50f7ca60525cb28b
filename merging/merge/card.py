"""The files beside merged weights: config, tokenizer, and a model card."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merging import checkpoints
from merging.merge.inputs import Inputs
from merging.runtime.errors import UserError, nearest

CARD = "README.md"


def auxiliary_files(
    inputs: Inputs,
    chosen: str | None,
    target: str,
    dtype: str | None,
    settings: Mapping[str, Any],
) -> dict[str, bytes]:
    """Return the small files of the output by name.

    Args:
      inputs: the models.
      chosen: whose to copy: `base`, an expert's name, or a folder; None is the base,
        or the first expert where there is none.
      target: the output's format, for the card.
      dtype: of the merged leaves, for the config; None leaves it as it is.
      settings: of the merge, for the card.

    Raises:
      UserError: no expert has that name; the folder isn't there, or holds no such file.
    """
    uri = _place(inputs, chosen)
    files = checkpoints.read_auxiliary_files(uri)
    if chosen is not None and not files:
        raise UserError(
            f"auxiliary_files {uri}: it holds no config and no tokenizer to copy."
        )
    if target == "safetensors" and "config.json" not in files:
        text = f"{uri} holds no config.json, and so the output won't (auxiliary_files)."
        warnings.warn(text, stacklevel=4)
    if "config.json" in files:
        files["config.json"] = _config(files["config.json"], dtype, inputs.tied)
    files[CARD] = model_card(inputs, settings, target).encode()
    return files


def _place(inputs: Inputs, chosen: str | None) -> str:
    """Return the folder that files are to be copied from."""
    if chosen is None:
        return inputs.first.uri
    if chosen == "base" and inputs.base:
        return inputs.base.uri
    if chosen in inputs.experts:
        return inputs.experts[chosen].uri
    if "/" in chosen or Path(chosen).is_dir():
        return chosen
    raise nearest("expert to copy files from", chosen, ["base", *inputs.experts])


def model_card(inputs: Inputs, settings: Mapping[str, Any], target: str) -> str:
    """Return a model card in the Hugging Face hub's convention."""
    base = inputs.base.uri if inputs.base else None
    experts = {name: source.uri for name, source in inputs.experts.items()}
    models = [*([base] if base else []), *experts.values()]
    # Which library opens it: transformers reads no Orbax.
    library = ["library_name: transformers"] if target == "safetensors" else []
    front = ["---", *library, "tags:", "- merge", "- model-merging"]
    front += ["base_model:", *(f"- {json.dumps(m)}" for m in models), "---", ""]
    rows = [f"| {name} | `{uri}` |" for name, uri in experts.items()]
    rules = [f"- `{rule}`" for rule in settings["leaf_rules"]]
    return "\n".join(
        [
            *front,
            "# Merged model",
            "",
            f"Merged by `{settings['method']}`"
            + (f" from the base `{base}`" if base else "")
            + f", seed {settings['seed']}.",
            "",
            "| expert | checkpoint |",
            "|---|---|",
            *rows,
            "",
            *(["Leaves treated otherwise, first match first:", "", *rules, ""]
              if rules else []),
            "`manifest.json` holds every setting, the inputs' digests and the SHA-256 "
            "of each leaf; `merging verify` checks them.",
            "",
        ]
    )  # fmt: skip


def _config(text: bytes, dtype: str | None, tied: bool) -> bytes:
    """Return a config.json that says of the merged weights what is true of them."""
    if dtype is None and not tied:
        return text
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(config, dict):
        return text
    for key in ("torch_dtype", "dtype"):
        if key in config and dtype is not None:
            config[key] = dtype
    if tied:
        config["tie_word_embeddings"] = True
    return (json.dumps(config, indent=2) + "\n").encode()
