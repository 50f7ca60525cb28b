from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def launch():
    """The folder of launch files."""
    return ROOT / "launch"
