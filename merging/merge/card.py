"""The files beside merged weights: config, tokenizer, and a model card."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from merging import checkpoints
from merging.merge.inputs import Inputs
from merging.runtime import foreign_json, hub, storage
from merging.runtime.errors import UserError, nearest

CARD, CONFIG = "README.md", "config.json"
# What the Hub looks for beside a model that a YAML made.
YAML = "mergekit_config.yml"
TOKENIZER, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
_VOCABULARY = "vocab_size"
# What configs call the number of layers, and lists with something for each of them.
_LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
# What a tokenizer is made of; and what may be left of it where its tokens changed.
_TOKENIZER = re.compile(
    r"(tokenizer|vocab|special_tokens_map|added_tokens|chat_template|normalizer|tekken)"
    r".*|merges\.txt|additional_chat_templates/.*|.+\.(model|spm|tiktoken|jinja)"
)
_WITHOUT_TOKENS = re.compile(
    r"tokenizer_config\.json|special_tokens_map\.json|.*chat_template.*"
)
_LAYER_LISTS = ("layer_types", "no_rope_layers", "layers_block_type", "mlp_layer_types")


def auxiliary_files(
    inputs: Inputs,
    chosen: str | None,
    target: str,
    dtype: str | None,
    settings: Mapping[str, Any],
    donor: str | None = None,
) -> dict[str, bytes]:
    """Return the small files of the output by name.

    Args:
      inputs: the models.
      chosen: whose to copy: `base`, an expert's name, or a folder; None is the base,
        or the first expert where there is none.
      target: the output's format.
      dtype: of the merged leaves, for the config; None leaves it as it is.
      settings: of the merge.
      donor: the folder they come from, where `chosen` is not asked.

    Raises:
      UserError: no expert has that name; the folder isn't there, or holds no such file.
    """
    uri = donor or _place(inputs, chosen)
    files = checkpoints.read_auxiliary_files(uri)
    if chosen is not None and not files and target != checkpoints.PEFT:
        raise UserError(
            f"auxiliary_files {uri}: it holds no config and no tokenizer to copy."
        )
    if CONFIG in files:
        files[CONFIG] = _config(files[CONFIG], dtype, inputs.tied)
    if settings["merge_yaml"]:
        files[YAML] = settings["merge_yaml"].encode()
    return files


def _place(inputs: Inputs, chosen: str | None) -> str:
    """Return the folder that files are to be copied from."""
    if chosen is None:
        return inputs.first.uri
    if chosen == "base" and inputs.base:
        return inputs.base.uri
    if chosen in inputs.experts:
        return inputs.experts[chosen].uri
    chosen = hub.fetched(chosen, weights=False)
    if Path(chosen).is_dir() or "://" in chosen:
        return chosen
    if "/" in chosen:
        raise UserError(f"auxiliary_files {chosen}: there is no such folder.")
    raise nearest("expert to copy files from", chosen, ["base", *inputs.experts])


def model_card(
    inputs: Inputs,
    settings: Mapping[str, Any],
    target: str,
    described: Sequence[Mapping[str, Any]],
) -> str:
    """Return a model card in the Hugging Face hub's convention.

    Args:
      inputs: the models.
      settings: of the merge.
      target: the output's format.
      described: the inputs, as the manifest lists them.
    """
    start = inputs.base.uri if inputs.base and settings["base"] else None
    base = start and _called(start)
    sources = [*([start] if start else []), *(s.uri for s in inputs.experts.values())]
    # The Hub links a repository by its name alone.
    models = [found.name if (found := hub.repository(u)) else u for u in sources]
    space = settings["space"]
    # Which library opens it: transformers reads no Orbax.
    names = {"safetensors": "transformers", checkpoints.PEFT: "peft"}
    library = [f"library_name: {names[target]}"] if target in names else []
    front = ["---", *library, "tags:", "- merge", "- model-merging"]
    front += ["base_model:", *(f"- {json.dumps(m)}" for m in models)]
    # An adapter is no merge to the Hub, but an adapter of its base.
    front += [] if target == checkpoints.PEFT else ["base_model_relation: merge"]
    front += ["---", ""]
    rows = [
        f"| {name} | `{_called(source.uri)}` | `{storage.digest(of['files'])}` |"
        for (name, source), of in zip(inputs.everything.items(), described, strict=True)
    ]
    rules = [f"- `{rule}`" for rule in settings["leaf_rules"]]
    along = settings["schedule"]
    # Indented, so that no fence in it can end it.
    yaml = [f"    {line}" for line in (settings["merge_yaml"] or "").splitlines()]
    return "\n".join(
        [
            *front,
            "# Merged model",
            "",
            f"Merged by `{settings['method']}`"
            + (f" in the space `{space}`" if space != "weights" else "")
            + (f" from the base `{base}`" if base else "")
            + (f", by the schedule `{along}`" if along else "")
            + f", seed {settings['seed']}.",
            "",
            "| model | checkpoint | digest of its files |",
            "|---|---|---|",
            *rows,
            "",
            "As asked for (without a dtype, leaves keep theirs):",
            "",
            *_settings(settings),
            "",
            *(["Leaves treated otherwise, first match first:", "", *rules, ""]
              if rules else []),
            *(["As this mergekit YAML says:", "", *yaml, ""] if yaml else []),
            "`manifest.json` holds every setting, the digest of each file of the "
            "inputs (above, those of a model's files together), and the SHA-256 of "
            "each leaf and of each file beside them, which `merging verify` checks.",
            "",
        ]
    )  # fmt: skip


def _settings(settings: Mapping[str, Any]) -> list[str]:
    """Return the lines of the settings that the card doesn't tell otherwise."""
    told = ("base", "experts", "statistics", "leaf_rules", "merge_yaml")
    kept = {
        key: value
        for key, value in settings.items()
        if key == "dtype" or (value is not None and key not in told)
    }
    text = json.dumps(kept, indent=2, ensure_ascii=False)
    return [f"    {line}" for line in text.splitlines()]


def _called(uri: str) -> str:
    """Return a place as a reader finds it: of the Hub, the name and the commit."""
    found = hub.repository(uri)
    return f"{found.name}@{found.commit}" if found else uri


def with_layers(files: Mapping[str, bytes], layers: Sequence[int]) -> dict[str, bytes]:
    """Return the files with a config of other layers.

    Args:
      files: by name; without a config they stay as they are.
      layers: the number that each of the output's layers had in the model.

    Raises:
      UserError: the config does not say how many layers there are.
    """
    if CONFIG not in files:
        return dict(files)
    config = _json(files[CONFIG])
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, dict) else {}):
        for key in _LAYER_KEYS:
            count = part.get(key)
            if type(count) is int:
                part[key] = len(layers)
                # Such as layer_types: a word for each layer.
                for name, value in part.items():
                    if name in _LAYER_LISTS and _lists(value, count, max(layers)):
                        part[name] = [value[layer] for layer in layers]
                return {**files, CONFIG: _as_bytes(config)}
    raise UserError(
        f"{CONFIG} does not say how many layers there are ({', '.join(_LAYER_KEYS)}), "
        "so that slices would leave it wrong."
    )


def with_vocabulary(
    files: Mapping[str, bytes], size: int, donor: str, content: bytes | None
) -> dict[str, bytes]:
    """Return the files with another vocabulary: mergekit's `tokenizer_source`.

    Args:
      files: by name; of a config, the size of the vocabulary follows.
      size: rows of the embeddings.
      donor: the folder whose tokenizer to take.
      content: of a tokenizer.json in place of its own.

    Raises:
      UserError: the config does not say how large the vocabulary is.
    """
    found = {n: text for n, text in files.items() if not _TOKENIZER.fullmatch(n)}
    tokenizer = checkpoints.read_auxiliary_files(donor)
    tokenizer = {n: text for n, text in tokenizer.items() if _TOKENIZER.fullmatch(n)}
    if content is not None:
        kept = {n: t for n, t in tokenizer.items() if _WITHOUT_TOKENS.fullmatch(n)}
        tokenizer = kept | {"tokenizer.json": content}
    if CONFIG in found:
        config = _json(found[CONFIG])
        inner = config.get("text_config")
        parts = [config, inner if isinstance(inner, dict) else {}]
        holding = [part for part in parts if type(part.get(_VOCABULARY)) is int]
        if not holding:
            raise UserError(
                f"{CONFIG} does not say how large the vocabulary is ({_VOCABULARY}), so"
                " that tokenizer_source would leave it wrong."
            )
        for part in holding:
            part[_VOCABULARY] = size
        found[CONFIG] = _as_bytes(config)
    return found | tokenizer


def with_chat_template(
    files: Mapping[str, bytes], template: str, models: Sequence[str]
) -> dict[str, bytes]:
    """Return the files with another chat template: mergekit's `chat_template`.

    Args:
      files: by name, of a tokenizer.
      template: in Jinja; or `auto`, the one that most of the models have.
      models: folders.

    Raises:
      UserError: there is no tokenizer, or the template is none.
    """
    if TOKENIZER not in files:
        raise UserError(
            f"chat_template: there is no {TOKENIZER} to go with it beside the weights."
        )
    if template == "auto":
        found = [text for model in models if (text := _template_of(model))]
        if not found:
            return dict(files)
        template = Counter(found).most_common(1)[0][0]
    elif "{" not in template or len(template) < 20:
        raise UserError(
            f"chat_template {template[:40]!r}: write the template itself, in Jinja, or "
            "auto; mergekit's own templates are not shipped here."
        )
    settings = _json(files[TOKENIZER])
    # One place only: programs differ in which they look at first.
    settings.pop("chat_template", None)
    kept = {n: t for n, t in files.items() if n not in ("chat_template.json",)}
    return {
        **kept,
        TOKENIZER: _as_bytes(settings),
        TEMPLATE: template.encode(),
    }


def _template_of(model: str) -> str:
    """Return a model's chat template, stripped; nothing if it has none."""
    files = checkpoints.read_auxiliary_files(model)
    if TEMPLATE in files:
        return files[TEMPLATE].decode("utf-8", errors="replace").strip()
    if TOKENIZER not in files:
        return ""
    found = _json(files[TOKENIZER]).get("chat_template")
    if isinstance(found, list):
        named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
        found = named.get("default")
    return found.strip() if isinstance(found, str) else ""


def _lists(value: Any, count: int, last: int) -> bool:
    return isinstance(value, list) and len(value) == count > last


def _json(text: bytes) -> dict[str, Any]:
    """Return an object; an empty one of what is none."""
    try:
        found = foreign_json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _as_bytes(config: Mapping[str, Any]) -> bytes:
    return (json.dumps(config, indent=2) + "\n").encode()


def _config(text: bytes, dtype: str | None, tied: bool) -> bytes:
    """Return a config.json that says of the merged weights what is true of them."""
    config = _json(text)
    if not config or (dtype is None and not tied):
        return text
    for key in ("torch_dtype", "dtype"):
        if key in config and dtype is not None:
            config[key] = dtype
    if tied:
        config["tie_word_embeddings"] = True
    return _as_bytes(config)
