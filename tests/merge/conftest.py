import sys
from pathlib import Path

import pytest
import yaml

from merging.checkpoints import open_checkpoint
from merging.merge import mergekit

sys.path.insert(0, str(Path(__file__).parent))

import mergekit_models  # noqa: E402
import models  # noqa: E402


@pytest.fixture(scope="session")
def family(tmp_path_factory):
    """A base's folder, and three experts' by name."""
    return models.family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Four models of four layers, and one of two, opened under their names."""
    folder = tmp_path_factory.mktemp("models")
    mergekit_models.make(folder, count=3)
    (folder / "short").mkdir()
    mergekit_models.make(folder / "short", count=0, layers=2)
    places = {name: str(folder / name) for name in ("base", "a", "b", "c")}
    opened = {name: open_checkpoint(place) for name, place in places.items()}
    return opened | {"short": open_checkpoint(str(folder / "short" / "base"))}


@pytest.fixture
def plan(sources):
    """Plan a YAML, given as Python's values."""

    def planned(method="task_arithmetic", dtype=None, **document):
        if method != "linear":
            document = {"base_model": "base"} | document
        document = {"merge_method": method} | document
        text = yaml.safe_dump({k: v for k, v in document.items() if v is not None})
        return mergekit.plan(mergekit.parse(text), sources, dtype)

    return planned
