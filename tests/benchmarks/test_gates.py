"""The gates of miniworld in the newcomer's grid.

    pytest -n 0 -s tests/benchmarks/test_gates.py

About ten minutes on two idle cores; set MERGING_WORKDIR to keep or continue the run.
"""

import os
from pathlib import Path

from merging import sweep
from merging.runtime import config

ROOT = Path(__file__).parent.parent.parent
TINY = ROOT / "configs" / "scaling_curves" / "tiny.py"


def test_every_dataset_passes_its_gates(tmp_path):
    workdir = Path(os.environ.get("MERGING_WORKDIR", tmp_path))
    assert sweep.gates(config.load(str(TINY)), workdir)
