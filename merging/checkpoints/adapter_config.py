"""adapter_config.json of a LoRA adapter as PEFT writes it: what scales which module.

Hu et al. 2021, arXiv 2106.09685: W = W₀ + s·BA with s = α / r; rsLoRA (Kalajdzievski
2023, arXiv 2312.03732) has s = α / √r. Ranks and alphas may be a module's own, by
patterns. Whatever else PEFT can do to the sum is refused by name: a setting is taken
only if it is known to leave the sum alone, or is off.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epath

from merging.checkpoints import files
from merging.checkpoints.errors import CorruptCheckpoint
from merging.runtime import foreign_json, patterns
from merging.runtime.errors import UserError, listed
from merging.runtime.patterns import Pattern

NAME = "adapter_config.json"
# Patterns for each of 20,000 expert modules take 3 MB.
_LARGEST = 2**23
_LARGEST_RANK = 2**20
# Which modules are adapted is told by the weights; the rest is for training.
_HARMLESS = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "revision"),
    *("base_model_name_or_path", "inference_mode", "r", "lora_alpha", "use_rslora"),
    *("rank_pattern", "alpha_pattern", "fan_in_fan_out", "bias", "init_lora_weights"),
    *("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform"),
    *("layers_pattern", "lora_dropout", "megatron_config", "megatron_core"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config"),
    *("qalora_group_size", "runtime_config"),
}
_REASONS = {
    "use_dora": "DoRA scales each column of the sum",
    "use_qalora": "QALoRA pools the inputs",
    "lora_bias": "its B has biases",
    "layer_replication": "it runs layers more than once",
    "target_parameters": "it adapts parameters of fused experts",
    "trainable_token_indices": "it replaces rows of the embedding",
    "alora_invocation_tokens": "it acts from some token on only",
}
# Initialisations that leave the base as it is; the others (pissa, olora, corda, loftq,
# lora_ga) take their first BA out of it, so that the sum has another θ₀.
_INITIAL = (None, True, False, "gaussian", "eva", "orthogonal")
# A pattern of these characters is a name; of the others each module tries all.
_PLAIN = re.compile(r"\^?[\w.-]+")
_MOST_PATTERNS, _MOST_WAYS = 200, 2 * patterns.MOST_WAYS


class Patterns(NamedTuple):
    """Values for modules by patterns; of those that fit, the first counts.

    Attributes:
      plain: {the end of a module's name: (place among the patterns, value)}; of one
        that begins with ^, the whole name.
      regular: (place, pattern, value) of the others.
    """

    plain: Mapping[str, tuple[int, Any]]
    regular: tuple[tuple[int, Pattern, Any], ...]

    def of(self, module: str, default: Any) -> Any:
        """Return a module's value."""
        parts = module.split(".")
        ends = [".".join(parts[i:]) for i in range(len(parts))]
        found = [self.plain[e] for e in (f"^{module}", *ends) if e in self.plain]
        found += [(i, v) for i, of, v in self.regular if of.ends(module)]
        return min(found, key=lambda f: f[0])[1] if found else default


class AdapterConfig(NamedTuple):
    """What an adapter's config says of its sums.

    Attributes:
      rank: r of modules without one of their own.
      alpha: α likewise.
      ranks: of modules with one of their own.
      alphas: likewise.
      rslora: whether s is α / √r.
      fan_in_fan_out: whether its modules store their weights as [in, out].
      base: what the adapter was trained on, if it says; a stranger's text.
      record: the whole of it.
    """

    rank: int
    alpha: float
    ranks: Patterns
    alphas: Patterns
    rslora: bool
    fan_in_fan_out: bool
    base: str
    record: Mapping[str, Any]

    def rank_of(self, module: str) -> int:
        """Return a module's rank."""
        return self.ranks.of(module, self.rank)

    def scaling_of(self, module: str) -> float:
        """Return a module's s."""
        rank = self.rank_of(module)
        return self.alphas.of(module, self.alpha) / (
            math.sqrt(rank) if self.rslora else rank
        )


def read(folder: epath.Path) -> AdapterConfig:
    """Return a folder's config.

    Raises:
      CorruptCheckpoint: there is none, or it is no JSON object.
      UserError: it is of another kind of adapter, or sets what would change the sum,
        all of it named; a rank or an alpha is no number.
    """
    path = folder / NAME
    record = _record(folder, path)
    kind = record.get("peft_type")
    if kind != "LORA":
        raise UserError(
            f"{folder} is a PEFT adapter of the kind {_shown(kind)}; LORA is read here."
        )
    if wrong := _refused(record):
        raise UserError(
            f"{path} sets what changes the sum θ₀ + s·BA, and is not followed here: "
            f"{listed(wrong)}. Merge the adapter into its base with PEFT first."
        )
    try:
        return AdapterConfig(
            rank=_rank("r", record.get("r")),
            alpha=_alpha("lora_alpha", record.get("lora_alpha")),
            ranks=_patterns("rank_pattern", record.get("rank_pattern"), _rank),
            alphas=_patterns("alpha_pattern", record.get("alpha_pattern"), _alpha),
            rslora=bool(record.get("use_rslora")),
            fan_in_fan_out=bool(record.get("fan_in_fan_out")),
            base=_base(record),
            record=record,
        )
    except ValueError as error:
        raise UserError(f"{path}: {error}.") from None


def base_named(folder: epath.Path) -> str:
    """Return what a folder's config calls the adapter's base; "" if it does not say."""
    try:
        return _base(_record(folder, folder / NAME))
    except UserError:
        return ""


def _record(folder: epath.Path, path: epath.Path) -> dict[str, Any]:
    if not path.exists():
        raise CorruptCheckpoint(folder, f"it has no {NAME}, which holds rank and alpha")
    if not files.lies_in(folder, NAME):
        raise UserError(f"{path} is a link to outside its folder, which is not read.")
    try:
        found = foreign_json.loads(files.read_small(path, _LARGEST))
        if not isinstance(found, dict):
            raise ValueError("no object")
    except UserError:
        raise
    except ValueError as error:
        reason = f"it can't be read: {str(error)[:200]}"
        raise CorruptCheckpoint(path, reason) from None
    return found


def _refused(record: Mapping[str, Any]) -> list[str]:
    """Return the settings that are not followed, each with a reason if it is known."""
    found = []
    for key, value in record.items():
        if key in _HARMLESS or not value:
            continue
        reason = _REASONS.get(key, "not known here")
        found.append(f"{_shown(key).strip(chr(39))} ({reason})")
    if record.get("bias") not in (None, "none"):
        found.append(f"bias={_shown(record['bias'])} (biases were trained)")
    initial = record.get("init_lora_weights")
    if not any(initial is value for value in _INITIAL[:3]) and (
        initial not in _INITIAL[3:]
    ):
        found.append(f"init_lora_weights={_shown(initial)} (it changed the base)")
    return found


def _rank(name: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value <= _LARGEST_RANK:
        raise ValueError(f"{name} must be a whole number from 1, not {_shown(value)}")
    return value


def _alpha(name: str, value: Any) -> float:
    number = math.nan
    if type(value) in (int, float):
        try:
            number = float(value)
        except OverflowError:
            pass
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number, not {_shown(value)}")
    return number


def _patterns(name: str, values: Any, read: Any) -> Patterns:
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ValueError(f"{name} must be an object, not {_shown(values)}")
    plain, regular = {}, []
    for place, (key, value) in enumerate(values.items()):
        found = read(f"{name} of {_shown(key)}", value)
        if _PLAIN.fullmatch(key):
            plain[key] = (place, found)
        else:
            regular.append((place, _pattern(name, key), found))
    if len(regular) > _MOST_PATTERNS:
        raise ValueError(f"{name} has {len(regular)} patterns, more than are tried")
    if sum(pattern.ways for _, pattern, _ in regular) > _MOST_WAYS:
        raise ValueError(f"{name} has patterns that may fit in too many ways together")
    return Patterns(plain, tuple(regular))


def _pattern(name: str, key: str) -> Pattern:
    try:
        return Pattern(key)
    except ValueError as error:
        raise ValueError(f"{_shown(key)} of {name}: the pattern {error}") from None


def _base(record: Mapping[str, Any]) -> str:
    found = record.get("base_model_name_or_path")
    plain = isinstance(found, str) and found.isprintable() and len(found) <= 200
    return found if plain else ""


def _shown(value: Any) -> str:
    """Return a stranger's value in a few words."""
    if isinstance(value, int) and value.bit_length() > 256:
        return "a long number"
    text = repr(value) if not isinstance(value, (dict, list)) else type(value).__name__
    return text if len(text) <= 80 else f"{text[:80]}…"
