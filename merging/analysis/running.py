"""Which analysis a config asks for, and what is said of it in the end."""

import importlib
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from merging.analysis import rows
from merging.runtime import processes, storage
from merging.runtime.errors import UserError, nearest

# {analysis: the module whose `run` does it}.
ANALYSES = {
    "geometry": "describing",
    "saturation": "saturation",
    "connectivity": "connectivity",
    "sweep": "of_sweep",
}


def run(config: Any, workdir: Path) -> None:
    """Do the analysis that a config names, into a workdir, and print its numbers.

    Raises:
      UserError: an unknown one, or as the analysis itself.
      Preempted: the system asked to stop; the same call goes on.
    """
    workdir = Path(storage.supported_path(workdir, "--workdir"))
    named = config.get("analysis") if isinstance(config, ConfigDict) else None
    if named is None:
        raise UserError(
            "this is no config of merging analyze: it has no analysis; --config "
            "analyze/geometry is one."
        )
    if named not in ANALYSES:
        raise nearest("analysis", named, ANALYSES)
    module = importlib.import_module(f"merging.analysis.{ANALYSES[named]}")
    done = module.run(config, workdir)
    if processes.is_first():
        path = workdir / rows.FILE
        if not done:
            print(f"Nothing to do, it is analysed: {path}")
            return
        print(module.summary(rows.read(workdir)["rows"]))
        print(f"Rows: {path}")
