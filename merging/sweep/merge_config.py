"""A merge that was found, as a config of `merging merge`."""

from collections.abc import Mapping
from pathlib import Path

from merging.runtime import storage
from merging.sweep.space import Recipe

_CONFIG = '''"""{title}

    merging merge --config {path} --config.output=MERGED

{words}
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.base = {base!r}
    config.experts = (
{experts}    )
{statistics}    config.output = {output!r}
    config.method = ConfigDict({method!r})
    config.rules = {rules}
    config.seed = {seed!r}
    return config
'''


def write(
    path: Path,
    recipe: Recipe,
    *,
    title: str,
    words: str,
    base: str | None,
    experts: Mapping[str, str],
    output: Path,
    statistics: Mapping[str, str] = {},  # noqa: B006
    method_file: str | None = None,
    seed: int = 0,
) -> Path:
    """Write the config of a merge; return its path.

    Args:
      path: of the file.
      recipe: the merge.
      title: the docstring's first line.
      words: how it was found.
      base: its checkpoint, if there is one.
      experts: {name: checkpoint}.
      output: the folder that the config makes unless told otherwise.
      statistics: {expert's name: folder}, for a method that merges by some.
      method_file: that registers the method.
      seed: of random masks.
    """
    method = {"name": recipe.method}
    if method_file:
        method["file"] = str(Path(method_file).absolute())
    told = _lines(statistics)
    rules = "".join(f"        {rule!r},\n" for rule in recipe.rules)
    made = _CONFIG.format(
        title=title,
        path=path,
        words=words,
        base=base or "",
        experts=_lines(experts),
        statistics=told and f"    config.statistics = (\n{told}    )\n",
        output=str(output),
        method=method,
        rules=f"(\n{rules}    )" if rules else "()",
        seed=seed,
    )
    return storage.write_bytes(path, made.encode())


def _lines(named: Mapping[str, str]) -> str:
    return "".join(f"        {f'{name}={uri}'!r},\n" for name, uri in named.items())
