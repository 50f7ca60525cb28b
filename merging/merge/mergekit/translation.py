"""Which of our methods does what one of mergekit's does, with the same numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from merging import methods
from merging.methods import Method
from merging.runtime.errors import UserError

# Ours, under its name there or under mergekit's rules.
_SHARED = {
    "lambda": "scale",
    "normalize": "normalize",
    "rescale": "rescale",
    "normalize_weights": "normalize",
    "eps": "eps",
    "tol": "tol",
    "filter_wise": "filter_wise",
    "epsilon": "epsilon",
    "r": "r",
    "alpha": "alpha",
}
# Where a number below 0, like 0, keeps nothing; elsewhere there is no such chance.
_MAY_BE_BELOW_0 = ("ties", "della", "della_linear")


def translated(
    name: str,
    experts: Sequence[Mapping[str, Any]],
    shared: Mapping[str, Any],
    has_base: bool,
) -> Method:
    """Return the method that merges some leaves.

    Args:
      name: mergekit's.
      experts: of each, its own parameters; of one that is not merged the weight is 0.
      shared: the other parameters; None has its default.
      has_base: whether there is a base that is no expert.

    Raises:
      UserError: a number that mergekit refuses, or that is not followed.
    """
    given = {key: value for key, value in shared.items() if value is not None}
    if name in _OWN:
        return _OWN[name](experts, given, has_base)
    ours = f"{name}@mergekit" if f"{name}@mergekit" in methods.names() else name
    known = methods.parameters(ours)
    settings = {
        _SHARED[key]: value for key, value in given.items() if _SHARED.get(key) in known
    }
    if "weights" in known:
        settings["weights"] = tuple(one["weight"] for one in experts)
    if "density" in known:
        settings["density"] = _densities(name, experts)
    for key in ("gamma", "epsilon"):
        if experts and key in experts[0]:
            settings[key] = tuple(one[key] for one in experts)
    if name.startswith("della"):
        _require_chances(settings["density"], settings["epsilon"])
    return methods.get(ours, **settings)


def _densities(name: str, experts: Sequence[Mapping[str, Any]]) -> tuple[float, ...]:
    least = -np.inf if name in _MAY_BE_BELOW_0 else 0
    found = [one["density"] for one in experts]
    if min(found) < least:
        raise UserError("density is below 0.")
    # As many as all are all.
    return tuple(min(max(density, 0.0), 1.0) for density in found)


def _require_chances(densities: Sequence[float], epsilons: Sequence[float]) -> None:
    for density, epsilon in zip(densities, epsilons, strict=True):
        if 0 < density < 1 and not 0 < density - epsilon <= density + epsilon < 1:
            raise UserError(f"density {density} ± epsilon {epsilon} is not in (0, 1).")


def _slerp(experts, given, has_base: bool) -> Method:
    return methods.get("slerp", t=experts[1]["weight"])


def _nuslerp(experts, given, has_base: bool) -> Method:
    along = "column" if given.get("nuslerp_row_wise", False) else "row"
    if given.get("nuslerp_flatten", True):
        along = "tensor"
    return methods.get(
        "nuslerp",
        weights=tuple(one["weight"] for one in experts),
        along=along,
        scale=1.0 if has_base else None,
    )


def _multislerp(experts, given, has_base: bool) -> Method:
    return methods.get(
        "multislerp",
        weights=tuple(one["weight"] for one in experts),
        normalize=given.get("normalize_weights", True),
        eps=given.get("eps", 1e-8),
        scale=1.0 if has_base else None,
    )


def _karcher(experts, given, has_base: bool) -> Method:
    steps = given.get("max_iter", 10)
    if steps != int(steps):
        raise UserError(f"max_iter is a whole number, not {steps}.")
    return methods.get(
        "karcher", max_iter=max(int(steps), 0), tol=given.get("tol", 1e-5)
    )


def _passthrough(experts, given, has_base: bool) -> Method:
    return methods.get("passthrough", factor=experts[0]["scale"])


def _sce(experts, given, has_base: bool) -> Method:
    density = min(max(given.get("select_topk", 1.0), 0.0), 1.0)
    return methods.get("sce@mergekit", density=density)


def _nearswap(experts, given, has_base: bool) -> Method:
    return methods.get("nearswap", t=given["t"])


_OWN = {
    "slerp": _slerp,
    "nuslerp": _nuslerp,
    "multislerp": _multislerp,
    "karcher": _karcher,
    "passthrough": _passthrough,
    "sce": _sce,
    "nearswap": _nearswap,
}
