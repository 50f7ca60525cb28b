"""Compiling in a process of its own, which may crash without taking the plan along.

A compiler for chips that are not there is a large native library, and what makes it
fail (a segmentation fault in libtpu, out of memory) can be caught nowhere else. This
module is both sides: `planned` starts it, and `python -m merging.planning.child OUT`
reads the request as JSON from its standard input and writes the plan to OUT.
"""

import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from merging.planning.topologies import Topology

COMMAND = (sys.executable, "-m", "merging.planning.child")


class Failed(Exception):
    """The process ended without a plan; says how."""


def planned(config: ConfigDict, where: Topology, part: str) -> dict[str, Any]:
    """Return one part of a plan, compiled in a process of its own.

    Raises:
      Failed: it ended otherwise.
    """
    request = {
        "config": config.to_dict(),
        "topology": where.name,
        "slices": where.slices,
        "part": part,
    }
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "plan.json"
        ran = subprocess.run(
            [*COMMAND, str(out)],
            input=json.dumps(request),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        if ran.returncode == 0 and out.exists():
            return json.loads(out.read_text())
    raise Failed(_ending(ran.returncode, ran.stderr))


def _ending(status: int, said: str) -> str:
    if status < 0:
        return f"it was ended by {signal.Signals(-status).name}"
    last = next((line for line in reversed(said.splitlines()) if line.strip()), "")
    return f"it ended with status {status}: {last.strip()[:200]}"


def main(out: str) -> None:
    """Do what the standard input asks for."""
    from merging import planning

    planning.use_no_accelerator()
    request = json.load(sys.stdin)
    where = planning.topology(request["topology"], request["slices"])
    config = ConfigDict(request["config"])
    found = planning.plan_here(config, where, compile=True, parts=[request["part"]])
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
