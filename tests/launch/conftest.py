from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def launch():
    """The folder of launch files."""
    return ROOT / "launch"


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path
