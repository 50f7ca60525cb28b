"""A merge as it is asked for, opened and checked before a weight is read."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from merging import checkpoints, methods
from merging.checkpoints import adapter_config
from merging.merge import card, job, manifest, mergekit, rules, spaces, statistics
from merging.merge.inputs import Inputs, expert_names, open_inputs
from merging.methods import Method
from merging.runtime import storage, tree
from merging.runtime.errors import UserError, nearest

DTYPES = ("bfloat16", "float16", "float32", "float64")


class _Asked(NamedTuple):
    """The models of a merge, and what is done with them.

    Attributes:
      inputs: the models.
      recipe: {path of each float leaf: its method}, in the order of `inputs.experts`.
      settings: for the manifest.
      dtype: of the merged leaves; None is the first model's.
      document: the mergekit YAML, if there is one.
      layers: of the first model, one for each of the output's; None is all of them.
      vocabulary: of the output, as a mergekit YAML asks for it.
      adapter: what is made of the merged leaves, where adapters are merged as such.
    """

    inputs: Inputs
    recipe: Mapping[str, Method | None]
    settings: dict[str, Any]
    dtype: str | None
    document: mergekit.Document | None = None
    layers: tuple[int, ...] | None = None
    vocabulary: mergekit.Vocabulary | None = None
    adapter: spaces.Output | None = None


def prepare(
    output: str, memory_budget: str | int, **settings: Any
) -> tuple[job.Job, dict[str, bytes]]:
    """Return the job, and the files to lay beside the weights.

    Args:
      output: the folder to make.
      memory_budget: of all blocks in memory.
      settings: the rest of `merge_checkpoints`'s or `merge_yaml`'s arguments, for the
        manifest.
    """
    format = settings["format"]
    if not output:
        raise UserError("name the folder to make (output).")
    space = settings["space"]
    if space == spaces.WEIGHTS and format not in (None, *checkpoints.FORMATS):
        raise nearest("format", format, checkpoints.FORMATS)
    if space != spaces.WEIGHTS and format not in (None, checkpoints.PEFT):
        raise UserError(
            f"format {format}: space={space} makes an adapter; leave it out."
        )
    by_yaml = settings.get("merge_yaml") is not None
    asked = _asked_by_yaml(settings) if by_yaml else _asked(settings)
    dtype = asked.settings["dtype"]
    if dtype == "float64" and not jax.config.jax_enable_x64:
        raise UserError("dtype float64: JAX computes in it with JAX_ENABLE_X64=1 only.")
    target = format or asked.inputs.first.format
    if target == "safetensors":
        checkpoints.require_tensor_names(asked.inputs.first_leaves)
    recorded = asked.settings | {"format": target}
    prepared = job.Job(
        inputs=asked.inputs,
        recipe=asked.recipe,
        output=output,
        format=target,
        seed=settings["seed"],
        budget=storage.parse_size(memory_budget),
        dtype=_dtype(asked.dtype),
        shard_bytes=storage.parse_size(settings["shard_size"], "shard_size"),
        settings=manifest.as_recorded(recorded, output),
        adapter=asked.adapter,
    )
    return prepared, _files(asked, target, recorded)


def _asked(settings: dict[str, Any]) -> _Asked:
    """Open what `merge_checkpoints`'s arguments name."""
    base, dtype = settings["base"], settings["dtype"]
    experts, method = settings["experts"], settings["method"]
    if dtype is not None and dtype not in DTYPES:
        raise nearest("dtype", dtype, DTYPES)
    if not isinstance(method, (str, Method)):
        raise UserError(
            f"method must be a value such as merging.methods.ties(), or text such as "
            f"'ties()', not {method!r}."
        )
    named = dict(experts) if isinstance(experts, Mapping) else expert_names(experts)
    _warn_of_twins(named)
    method, own = _own_method(method, settings["method_file"])
    if settings["space"] != spaces.WEIGHTS:
        return _asked_as_adapters(settings, named, method, own)
    inputs = open_inputs(base, named)
    recipe = _recipe(inputs, method, settings["leaf_rules"])
    told = settings["statistics"]
    told = dict(told) if isinstance(told, Mapping) else expert_names(told)
    statistics.require(recipe.values(), named, told)
    kinds = statistics.wanted(recipe.values())
    opened = {kind: statistics.open_statistics(kind, told) for kind in kinds}
    inputs = inputs._replace(statistics=opened)
    recorded = _recorded(settings, named, told, method, own)
    return _Asked(inputs, recipe, recorded, dtype)


def _asked_as_adapters(
    settings: dict[str, Any],
    named: Mapping[str, str],
    method: Method | str,
    own: dict[str, str] | None,
) -> _Asked:
    """Open adapters that are merged into an adapter."""
    inputs, space, given = spaces.open_adapters(
        settings["space"], settings["base"], named
    )
    recipe = _recipe(inputs, method, settings["leaf_rules"])
    if settings["statistics"] or statistics.wanted(recipe.values()):
        raise UserError(
            f"space {settings['space']}: statistics are of a model's own weights; "
            "merge by them with space=weights, or choose another method."
        )
    dtype = _dtype(settings["dtype"])
    made = spaces.Output(space, given, dtype, settings["base"])
    recorded = _recorded(settings, named, {}, method, own)
    return _Asked(inputs, recipe, recorded, None, adapter=made)


def _recorded(
    settings: dict[str, Any],
    named: Mapping[str, str],
    told: Mapping[str, str],
    method: Method | str,
    own: dict[str, str] | None,
) -> dict[str, Any]:
    """Return the settings for the manifest."""
    return settings | {
        "statistics": dict(told),
        "experts": dict(named),
        "method": method if isinstance(method, str) else repr(method),
        "method_file": own,
        "leaf_rules": list(settings["leaf_rules"]),
        "merge_yaml": None,
    }


def _asked_by_yaml(settings: dict[str, Any]) -> _Asked:
    """Open what a mergekit YAML names."""
    text = settings["merge_yaml"]
    document = mergekit.parse(text)
    models = {name: checkpoints.open_checkpoint(name) for name in document.models}
    cast = _dtype(document.dtype)
    merge = mergekit.plan(document, models, cast)
    experts = {name: source.uri for name, source in merge.inputs.experts.items()}
    recorded = settings | {
        "base": document.base,
        "experts": experts,
        "method": document.method,
        "method_file": None,
        "schedule": None,
        "leaf_rules": [],
        "statistics": {},
        "dtype": document.out_dtype or document.dtype,
    }
    return _Asked(
        merge.inputs,
        merge.recipe,
        recorded,
        document.out_dtype,
        document,
        merge.layers,
        merge.vocabulary,
    )


def _files(asked: _Asked, target: str, settings: dict[str, Any]) -> dict[str, bytes]:
    """Return the small files of the output by name."""
    chosen, document = settings["auxiliary_files"], asked.document
    donor = None
    if asked.adapter is not None and chosen is None:
        # Of an adapter's folder: the base's config would make a model of this one.
        chosen = next(iter(settings["experts"]))
    if document is not None and chosen in (None, "base"):
        donor = document.models[0]
    files = card.auxiliary_files(
        asked.inputs, chosen, target, settings["dtype"], settings, donor
    )
    if asked.adapter is not None:
        files.pop(card.CONFIG, None)
        files[adapter_config.NAME] = asked.adapter.config()
    if asked.layers is not None:
        files = card.with_layers(files, asked.layers)
    if (of := asked.vocabulary) is not None:
        files = card.with_vocabulary(files, of.size, of.donor, of.content)
    if document is not None and document.chat_template:
        files = card.with_chat_template(files, document.chat_template, document.models)
    return files


def _own_method(
    method: Method | str, file: str | None
) -> tuple[Method | str, dict[str, str] | None]:
    """Return the method, and the user's file that registers it, for the manifest."""
    if not file:
        return method, None
    digest, names = methods.load_file(file)
    if not method:
        if len(names) > 1:
            raise UserError(f"{file} registers {', '.join(names)}: name one of them.")
        method = names[0]
    return method, {"path": file, "sha256": digest}


def _recipe(
    inputs: Inputs, method: Method | str, leaf_rules: Sequence[str]
) -> dict[str, Method | None]:
    """Return the method of each float leaf, its numbers in the experts' order."""
    leaves = inputs.first_leaves
    floats = {p: a for p, a in leaves.items() if tree.dtype_class(a) == "float"}
    chosen = rules.recipe(floats, method, leaf_rules)
    if inputs.base is None and any(m is None or m.needs_base for m in chosen.values()):
        names = sorted({m.name if m else "base" for m in chosen.values()})
        raise UserError(f"{', '.join(names)}: this needs the base; name it (base).")
    ordered = {
        m: None if m is None else m.reordered(inputs.order)
        for m in dict.fromkeys(chosen.values())
    }
    return {path: ordered[m] for path, m in chosen.items()}


def _warn_of_twins(experts: Mapping[str, str]) -> None:
    uris = list(experts.values())
    twins = sorted({uri for uri in uris if uris.count(uri) > 1})
    if twins:
        text = f"merged more than once, as different experts: {', '.join(twins)}"
        warnings.warn(text, stacklevel=3)


def _dtype(name: str | None) -> np.dtype | None:
    return None if name is None else np.dtype(getattr(jnp, name))
