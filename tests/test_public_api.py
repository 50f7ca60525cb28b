"""What the package promises is there, and the example of each function runs."""

import doctest
from pathlib import Path

import one_device
import pytest

import merging

ROOT = Path(__file__).parents[1]


SWEEP = pytest.param("sweep", marks=pytest.mark.long)


@pytest.mark.parametrize(
    "name", ["evaluate", "merge", "plan", "report", SWEEP, "train"]
)
def test_the_example_of_each_public_function_runs(name, tmp_path, monkeypatch):
    for folder in ("configs", "docs"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    if name in ("evaluate", "train"):
        one_device.use(monkeypatch)
    monkeypatch.chdir(tmp_path)
    room_or_function = getattr(merging, name)
    function = getattr(room_or_function, name, room_or_function)
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = finder.find(function, name, globs={"merging": merging})
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


def test_every_promised_name_is_there():
    assert set(merging.__all__) <= set(dir(merging))
    assert all(getattr(merging, name) is not None for name in merging.__all__)
