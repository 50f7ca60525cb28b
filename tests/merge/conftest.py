import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import models  # noqa: E402


@pytest.fixture(scope="session")
def family(tmp_path_factory):
    """A base's folder, and three experts' by name."""
    return models.family(tmp_path_factory.mktemp("family"))
