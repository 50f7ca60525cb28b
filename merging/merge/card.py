"""The files beside merged weights: config, tokenizer, and a model card."""

import json
from collections.abc import Mapping
from typing import Any

from merging import checkpoints
from merging.merge.inputs import BASE, Inputs
from merging.runtime.errors import nearest

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
      chosen: whose to copy: `base`, an expert's name, or a folder; None is the base.
      target: the output's format, for the card.
      dtype: of the merged leaves, for the config; None leaves it as it is.
      settings: of the merge, for the card.

    Raises:
      UserError: no expert has that name.
    """
    places = dict(zip(inputs.names, (s.uri for s in inputs.sources), strict=True))
    if chosen is None:
        uri = inputs.sources[0].uri
    elif chosen == "base" and inputs.base:
        uri = places[BASE]
    elif "/" in chosen and chosen not in places:
        uri = chosen
    elif chosen in places:
        uri = places[chosen]
    else:
        raise nearest("expert to copy files from", chosen, ["base", *inputs.experts])
    files = {n: p.read_bytes() for n, p in checkpoints.auxiliary_files(uri).items()}
    if dtype is not None and "config.json" in files:
        files["config.json"] = _with_dtype(files["config.json"], dtype)
    files[CARD] = model_card(inputs, settings, target).encode()
    return files


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


def _with_dtype(text: bytes, dtype: str) -> bytes:
    try:
        config = json.loads(text)
    except ValueError:
        return text
    if not isinstance(config, dict):
        return text
    for key in ("torch_dtype", "dtype"):
        if key in config:
            config[key] = dtype
    return (json.dumps(config, indent=2) + "\n").encode()
