"""The files of an adapter that is written: the names of its tensors, and its config."""

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from merging.checkpoints.adapter import PREFIX

_INDENT = 2


class Written(NamedTuple):
    """A module of an adapter that is written.

    Attributes:
      rank: r.
      scaling: s of s·BA.
      embedding: whether it is one.
    """

    rank: int
    scaling: float
    embedding: bool = False


def factor_names(module: str, embedding: bool) -> tuple[str, str]:
    """Return the names of a module's A and B, as PEFT has them."""
    side, end = ("lora_embedding_", "") if embedding else ("lora_", ".weight")
    return f"{PREFIX}{module}.{side}A{end}", f"{PREFIX}{module}.{side}B{end}"


def leaf_name(leaf: str, modules: Collection[str]) -> str:
    """Return the name of a leaf that is replaced whole, as PEFT has it.

    Args:
      leaf: of the base.
      modules: that have factors, too.
    """
    module, _, kind = leaf.rpartition(".")
    inside = ".base_layer" if module in modules else ""
    return f"{PREFIX}{module}{inside}.{kind}"


def config_file(
    modules: Mapping[str, Written],
    *,
    target_modules: Iterable[str],
    modules_to_save: Iterable[str] = (),
    base: str = "",
    task_type: str | None = None,
    fan_in_fan_out: bool = False,
) -> bytes:
    """Return adapter_config.json of plain LoRA: s = α / r for every module.

    Args:
      modules: all that have factors.
      target_modules: names that PEFT finds them by.
      modules_to_save: names of modules that are replaced whole.
      base: what the adapter is for.
      task_type: as PEFT has it.
      fan_in_fan_out: whether the modules store their weights as [in, out].
    """
    ranks = [module.rank for module in modules.values()]
    rank = max(set(ranks), key=lambda r: (ranks.count(r), r)) if ranks else 1
    alphas = {name: _alpha(of) for name, of in modules.items()}
    most = list(alphas.values())
    alpha = max(set(most), key=lambda a: (most.count(a), a)) if most else 1
    record: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base or None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": fan_in_fan_out,
        "init_lora_weights": True,
        "target_modules": list(target_modules),
        "modules_to_save": list(modules_to_save) or None,
        # ^: the whole name, and not another that ends with it.
        "rank_pattern": {f"^{n}": m.rank for n, m in modules.items() if m.rank != rank},
        "alpha_pattern": {f"^{n}": a for n, a in alphas.items() if a != alpha},
    }
    return (json.dumps(record, indent=_INDENT) + "\n").encode()


def _alpha(module: Written) -> float | int:
    found = module.scaling * module.rank
    return int(found) if found == int(found) else found
