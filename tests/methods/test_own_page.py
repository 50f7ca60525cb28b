"""docs/own_method.md: its files are run by its commands, as they stand there."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tolerance import rounding

from merging import merge, methods
from merging.cli import main
from merging.methods import registry

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "own_method.md").read_text()
BLOCKS = re.findall(r"```python\n# (\w+)\.py\n(.*?)```\n\n```\n(.*?)```", PAGE, re.S)
SHAPES = {"layers.0.up.weight": (14, 9), "layers.0.norm.weight": (9,)}


def median(deltas):
    return {p: np.median([d[p] for d in deltas], axis=0) for p in SHAPES}


def low_rank(deltas):
    matrix, norm = ([d[p] for d in deltas] for p in SHAPES)
    u, s, v = np.linalg.svd(sum(matrix), full_matrices=False)
    cut = u[:, :2] @ np.diag(s[:2]) @ v[:2]
    return dict(zip(SHAPES, (cut, sum(norm) / len(norm)), strict=True))


def level(deltas):
    found = {}
    for path in SHAPES:
        norms = np.array([np.linalg.norm(d[path]) for d in deltas])
        scaled = [
            d[path] * norms.mean() / n for d, n in zip(deltas, norms, strict=True)
        ]
        found[path] = np.mean(scaled, axis=0)
    return found


EXPECTED = {"median": median, "low_rank": low_rank, "level": level}


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A folder with BASE and three experts, and their leaves in that order."""
    folder, rng = tmp_path_factory.mktemp("family"), np.random.default_rng(0)
    start = {p: rng.normal(size=s).astype(np.float32) for p, s in SHAPES.items()}
    moved = [
        {p: x + rng.normal(size=x.shape).astype(np.float32) for p, x in start.items()}
        for _ in range(3)
    ]
    for name, leaves in zip(
        ("BASE", "EXPERT1", "EXPERT2", "EXPERT3"), (start, *moved), strict=True
    ):
        (folder / name).mkdir()
        save_file(leaves, folder / name / "model.safetensors")
    return folder, start, moved


def test_the_page_has_one_method_of_each_kind():
    assert [name for name, *_ in BLOCKS] == list(EXPECTED)


@pytest.mark.parametrize(("name", "text", "command"), BLOCKS, ids=list(EXPECTED))
def test_a_files_command_merges_by_its_formula(
    name, text, command, family, tmp_path, monkeypatch, capsys
):
    assert len(text.strip().splitlines()) < 30
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    folder, start, moved = family
    monkeypatch.chdir(tmp_path)
    for model in folder.iterdir():
        Path(model.name).symlink_to(model)
    # The folder, too, so that each test runs the file itself.
    Path(f"{name}.py").write_text(f"{text}# {tmp_path}\n")
    program, *arguments = shlex.split(command.replace("\\\n", ""))
    assert program == "merging"
    assert main.main(arguments) == 0, capsys.readouterr().err
    found = load_file("MERGED/model.safetensors")
    deltas = [
        {p: x.astype(np.float64) - start[p] for p, x in expert.items()}
        for expert in moved
    ]
    for path, step in EXPECTED[name](deltas).items():
        np.testing.assert_allclose(
            found[path], start[path] + step, atol=rounding(14 + 9, 8)
        )
    parameters = {"rank": 2} if name == "low_rank" else {}
    in_memory = merge(start, moved, methods.get(name, **parameters))
    for path, leaf in in_memory.items():
        np.testing.assert_array_equal(found[path], leaf)
