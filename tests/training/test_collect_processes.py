"""`merging collect` on one process and on two: killed, and gone on with."""

import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import scored_models
import together
from tolerance import decoder_length, rounding

from merging import checkpoints
from merging.runtime import tree

CONFIG = f"{together.ROOT / 'configs' / 'collect' / 'jsonl.py'}:sea"
LENGTH, WORDS, LIMIT = 24, 290, 600


@pytest.fixture(scope="module")
def collect(tmp_path_factory):
    """Return the command that gathers into a folder, from the same model and files."""
    root = tmp_path_factory.mktemp("given")
    tokenizer = scored_models.byte_level(["a few words and a few more"], WORDS)
    how = {"heads": 2, "width": 16, "vocabulary": WORDS}
    model = scored_models.write(root / "model", tokenizer, **how)
    of = {"dataset": "tides", "category": "sea", "split": "held_in"}
    lines = [
        json.dumps(of | {"inputs": f"Tide {n}?", "choices": ["a", "b"], "label": n % 2})
        for n in range(64)
    ]
    (root / "mine.jsonl").write_text("\n".join(lines))
    values = {"checkpoint": model, "data.files": root / "mine.jsonl", "length": LENGTH}
    values |= {"examples": 24, "batch_size": 2, "save_every": 4}
    flags = [f"--config.{key}={value}" for key, value in values.items()]
    command = [sys.executable, "-m", "merging", "collect", "--config", CONFIG, *flags]
    return lambda folder: [*command, "--workdir", str(folder)]


def start(command, processes):
    """Start a job of so many processes, of one device each."""
    if processes > 1:
        return together.start(command, processes, together.environment())
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return [subprocess.Popen(command, env=together.environment(), **out)]


def finish(command, processes):
    """Run a job to its end, and return what its processes printed."""
    started = start(command, processes)
    said = together.heard(started, limit=LIMIT)
    assert together.statuses(started) == [0] * processes, said
    return said


@pytest.fixture(scope="module")
def alone(collect, tmp_path_factory):
    """What one process gathers that nothing disturbs."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    finish(collect(folder), 1)
    return folder


@pytest.fixture(scope="module")
def two(collect, alone, tmp_path_factory):
    """Likewise two processes, and what they printed."""
    folder = begun(tmp_path_factory.mktemp("two"), alone)
    return folder, finish(collect(folder), 2)


def begun(root, alone):
    """Return a workdir that has the examples, so that no process needs TensorFlow."""
    folder = root / "run"
    folder.mkdir()
    shutil.copy(alone / "config.json", folder)
    shutil.copytree(alone / "data", folder / "data")
    return folder


def killed(collect, folder, processes, victim):
    """Kill one of a job's processes as soon as sums are saved, well before the end."""
    started, deadline = start(collect(folder), processes), time.monotonic() + LIMIT
    while started[victim].poll() is None and time.monotonic() < deadline:
        if checkpoints.exists(folder / "partial"):
            break
        time.sleep(0.001)
    started[victim].kill()
    said = together.heard(started, limit=LIMIT)
    assert 0 not in together.statuses(started), said
    assert not (folder / "collect.json").exists() and not (folder / "gram").exists()


def leaves(folder, kind):
    return tree.flatten(checkpoints.restore(folder / kind))


def record(path):
    """Return what was gathered of, without the code's revision, which may move on."""
    return {k: v for k, v in json.loads(path.read_text()).items() if k[:4] != "git_"}


def same_bytes(folder, expected):
    for kind in ("fisher", "gram"):
        whole = leaves(expected, kind)
        for path, leaf in leaves(folder, kind).items():
            assert leaf.tobytes() == whole.pop(path).tobytes(), (kind, path)
        assert not whole
        records = [record(of / kind / "statistics.json") for of in (folder, expected)]
        assert records[0] == records[1]
    assert not list(folder.glob("partial*"))


@pytest.mark.long
def test_two_processes_gather_what_one_does_and_the_first_tells(alone, two):
    folder, said = two
    assert "Gathered:" in said[0] and "24 examples" in said[0]
    assert "Gathered:" not in said[1]
    told = record(folder / "collect.json")
    assert told == record(alone / "collect.json")
    assert not list(folder.glob("partial*"))
    # Forward and backward, and a square doubles the relative error; the sum over
    # tokens or examples.
    length = 4 * decoder_length(
        layers=2, width=16, inner=16, mlp=32, context=LENGTH, vocabulary=WORDS
    )
    for kind in ("fisher", "gram"):
        expected = leaves(alone, kind)
        for path, leaf in leaves(folder, kind).items():
            most = np.abs(expected[path]).max()
            close = rounding(length + told["tokens"], most)
            np.testing.assert_allclose(leaf, expected[path], rtol=0, atol=close)
            assert most > 100 * close, path


@pytest.mark.long
def test_a_killed_collection_goes_on_to_the_same_bytes(collect, alone, tmp_path):
    folder = begun(tmp_path, alone)
    killed(collect, folder, 1, 0)
    (said,) = finish(collect(folder), 1)
    assert "Gathered:" in said
    same_bytes(folder, alone)


@pytest.mark.long
@pytest.mark.parametrize("victim", [0, 1])  # the first coordinates
def test_one_killed_process_ends_both_and_they_go_on_to_the_same_bytes(
    collect, alone, two, tmp_path, victim
):
    folder = begun(tmp_path, alone)
    killed(collect, folder, 2, victim)
    finish(collect(folder), 2)
    same_bytes(folder, two[0])
