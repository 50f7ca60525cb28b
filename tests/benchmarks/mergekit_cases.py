"""The YAML files that both programs merge: methods times what a file can say."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import mergekit_adapters
import mergekit_files as files
import mergekit_others
import mergekit_vocabularies
from mergekit_files import Yaml

METHODS = ("linear", "task_arithmetic", "ties", "dare_linear")
# Folders of models: the same numbers in three dtypes, and float32 with a tied head; and
# others with three vocabularies.
FAMILIES = ("float32", "bfloat16", "float16", "tied", *mergekit_vocabularies.FAMILIES)


class Case(NamedTuple):
    """A YAML file.

    Attributes:
      name: the method, and what the file says.
      method: mergekit's name.
      family: of the models that it merges.
      yaml: with models called base, expert1 and expert2.
      densities: of the experts, where they are the same for all leaves.
      layers: of the models, one for each of the output's; None is all of them.
      reference: in place of `yaml`, what mergekit computes in float32 and rounds once.
    """

    name: str
    method: str
    family: str
    yaml: Yaml
    densities: tuple[float, float] | None = None
    layers: tuple[int, ...] | None = None
    reference: Yaml | None = None

    @property
    def random(self) -> bool:
        """Whether chance decides what is kept."""
        of_chance = "dare" in self.method or "della" in self.method
        settled = "density 0" in self.name or "density 1" in self.name
        return of_chance and not settled

    @property
    def narrow(self) -> str | None:
        """The dtype that mergekit computes in, if it is narrower than float32."""
        dtype = self.yaml.get("dtype") or self.family
        return dtype if dtype in ("bfloat16", "float16") else None


def cases() -> Iterator[Case]:
    """Yield every case."""
    for method in METHODS:
        for name, make in FEATURES.items():
            yaml = make(method)
            if yaml is not None:
                yield _case(method, name, yaml)
    yield _case("dare_ties", "plain", files.plain("dare_ties"))
    yield _case("dare_ties", "normalize", files.plain("dare_ties", normalize=True))
    for name, yaml in files.passed().items():
        yield _case("passthrough", name, yaml)
    for method, name, yaml in mergekit_others.files():
        yield _case(method, name, yaml)
    for method, name, yaml in mergekit_vocabularies.yamls():
        yield _case(method, name, {"family": "vocabularies"} | yaml)
    for method, name, yaml in mergekit_adapters.yamls():
        yield _case(method, name, yaml)


def _case(method: str, name: str, yaml: Yaml) -> Case:
    family = yaml.pop("family", "float32")
    if method not in ("linear", "passthrough", "karcher"):
        yaml.setdefault("base_model", "base")
    case = Case(
        f"{method}, {name}",
        method,
        family,
        {"merge_method": method, **yaml},
        yaml.pop("densities", None),
        yaml.pop("layers", None),
    )
    for key in ("densities", "layers"):
        case.yaml.pop(key, None)
    if case.narrow is None and method != "arcee_fusion":
        return case
    # Of the divergence of rows that are nearly equal, float32 leaves mergekit a digit.
    dtype = "float64" if method == "arcee_fusion" else "float32"
    last = case.narrow or "float32"
    once = {"dtype": dtype, "out_dtype": case.yaml.get("out_dtype", last)}
    return case._replace(reference=case.yaml | once)


FEATURES: dict[str, Callable[[str], Yaml | None]] = {
    "plain": files.plain,
    "no dtype": lambda method: files.plain(method) | {"dtype": None},
    "gradient": files.gradient,
    "gradients": files.gradients,
    "filter": files.filter,
    "two filters": files.two_filters,
    "filters over the depth": files.filters_over_depth,
    "fallback": files.fallback,
    "slices": files.slices,
    "slices, filters": files.slices_filters,
    "truncation": files.truncated,
    "layers left out": files.dropped_layers,
    "repetition": files.repeated,
    "reorder": files.reordered,
    "layers of other numbers": files.shifted,
    "slices of other models": files.other_models,
    "more models at the end": files.more_at_the_end,
    "slice base": files.slice_base,
    "slice bases, no base": files.slice_base_only,
    "normalize": lambda method: files.plain(method, normalize=True),
    "no normalize": lambda method: files.plain(method, normalize=False),
    "lambda": lambda method: files.plain(method, **{"lambda": 0.7}),
    "shared, filtered": files.shared,
    "no rescale": lambda method: files.plain(method, rescale=False),
    "negative weight": files.negative,
    "weights that sum to 0": files.zero_sum,
    "density 0 and above 1": files.density_0,
    "spellings": files.spellings,
    "base among the models": files.base_listed,
    "base of linear": files.base_of_linear,
    "out_dtype": lambda method: files.plain(method) | {"out_dtype": "bfloat16"},
    "cast to bfloat16": lambda method: files.plain(method) | {"dtype": "bfloat16"},
    "cast to float16": lambda method: files.plain(method) | {"dtype": "float16"},
    "bfloat16": lambda method: (
        files.plain(method) | {"dtype": "bfloat16", "family": "bfloat16"}
    ),
    "bfloat16, no dtype": lambda method: (
        files.plain(method) | {"dtype": None, "family": "bfloat16"}
    ),
    "bfloat16, gradients": lambda method: (
        files.gradient(method) | {"dtype": "bfloat16", "family": "bfloat16"}
    ),
    "bfloat16, lambda": lambda method: (
        files.plain(method, **{"lambda": 0.7}) | {"dtype": None, "family": "bfloat16"}
    ),
    "bfloat16 to float32": lambda method: files.plain(method) | {"family": "bfloat16"},
    "bfloat16, repetition": lambda method: (
        files.repeated(method) | {"dtype": "float32", "family": "bfloat16"}
    ),
    "tied": lambda method: files.plain(method) | {"family": "tied"},
    "tied, gradients": lambda method: files.gradients(method) | {"family": "tied"},
    "tied, repetition": lambda method: files.repeated(method) | {"family": "tied"},
    "weight missing": files.missing,
    "weight missing for some": files.missing_for_some,
    "slice without its base": files.without_base,
    "slice base, weight missing": files.unweighted_base,
    "slices of unequal lengths": files.unequal,
    "layers beyond the last": files.too_far,
    "a model twice": files.twice,
    "weight is a word": files.no_number,
    "dtype is none": files.wrong_dtype,
}
