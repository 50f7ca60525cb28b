"""A merge that is interrupted in the worst places, and what its journal makes of it."""

import shutil

import models
import numpy as np
import pytest
from safetensors.numpy import load_file

from merging import UserError, checkpoints, methods
from merging.merge import blocks, job, majority, memory, passes
from merging.merge import streamed as stream

MERGE = {"memory_budget": "700kB"}
TIES = methods.ties(density=1)


class Cut(Exception):
    """The power went."""


@pytest.fixture(scope="module")
def cancelling(tmp_path_factory):
    """A family many of whose votes cancel, under a majority that turns at the end.

    Up to "b" more votes are positive: so the blocks of "a" are written over.
    """
    folder = tmp_path_factory.mktemp("cancelling")
    shapes = {"a": (500, 300), "b": (700, 100), "c": (70,)}
    base = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    rng = np.random.default_rng(0)
    up = {"a": 0.52, "b": 1 / 3, "c": 1 / 3}
    moved = [
        {
            n: x + rng.choice([-1, 1], x.shape, p=[1 - up[n], up[n]]).astype("f4") / 4
            for n, x in base.items()
        }
        for _ in range(2)
    ]
    experts = {f"e{i}": models.save(folder / f"e{i}", e) for i, e in enumerate(moved)}
    return models.save(folder / "base", base), experts


@pytest.fixture(scope="module")
def expected(cancelling, tmp_path_factory):
    output = tmp_path_factory.mktemp("expected") / "out"
    stream.merge_checkpoints(*cancelling, TIES, str(output), **MERGE)
    leaves = load_file(output / "model.safetensors")
    votes = sum(
        load_file(f"{e}/model.safetensors")["a"] for e in cancelling[1].values()
    )
    assert (votes == 0).any() and (leaves["a"][votes == 0] == -0.25).all()
    return models.bits(leaves)


def interrupted(family, output, monkeypatch, name, calls, method=TIES):
    """Merge until a function of the engine was called so often."""
    module = next(
        m for m in (blocks.BlockMerger, blocks, majority, job) if hasattr(m, name)
    )
    whole, seen = getattr(module, name), []

    def cut(*args, **kwargs):
        seen.append(name)
        if len(seen) > calls:
            raise Cut
        return whole(*args, **kwargs)

    with monkeypatch.context() as patched, pytest.raises(Cut):
        patched.setattr(module, name, cut)
        stream.merge_checkpoints(*family, method, str(output), **MERGE)
    assert not output.exists()
    return output.with_name("out.partial")


def resumed(family, output, method=TIES):
    stream.merge_checkpoints(*family, method, str(output), **MERGE)
    assert stream.verify(str(output)) == []
    return models.bits(load_file(output / "model.safetensors"))


def zeroed(path, start, size):
    """What a file is after a power cut that pages of it did not live to see."""
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(bytes(size))


# Before the majority is known; in the middle of applying it; when all is written.
@pytest.mark.parametrize("phase", ["_apply", "_written_over", "_record"])
@pytest.mark.parametrize("lost", ["weights", "ties", "answers", "half a line"])
def test_what_a_power_cut_took_is_made_again(
    cancelling, expected, tmp_path, monkeypatch, phase, lost
):
    output = tmp_path / "out"
    calls = 1 if phase == "_written_over" else 0
    partial = interrupted(cancelling, output, monkeypatch, phase, calls)
    journal = partial / ".merge"
    if lost == "weights":
        zeroed(partial / "checkpoint" / "model.safetensors", 8192, 100_000)
    elif lost == "ties":
        zeroed(journal / "ties.0.bin", 4096, 8192)
    elif lost == "answers":
        for path in journal.glob("negative.jsonl"):
            zeroed(path, 0, path.stat().st_size)
    else:
        lines = (journal / "blocks.0.jsonl").read_bytes()
        (journal / "blocks.0.jsonl").write_bytes(lines[:-20] + bytes(20))
    assert resumed(cancelling, output) == expected


def test_a_disk_that_fails_at_the_end_has_all_blocks_done_over(
    cancelling, expected, tmp_path, monkeypatch
):
    output = tmp_path / "out"

    def fails(writer, extra_files):
        raise checkpoints.NotStored(writer.folder, "Input/output error")

    with monkeypatch.context() as patched, pytest.raises(UserError, match="not store"):
        patched.setattr(checkpoints_writer(), "finish", fails)
        stream.merge_checkpoints(*cancelling, TIES, str(output), **MERGE)
    # What is read back looks whole, and never reached the disk.
    assert not list((tmp_path / "out.partial" / ".merge").glob("blocks.*"))
    assert resumed(cancelling, output) == expected


def test_sums_over_all_experts_are_written_down_once(tmp_path, monkeypatch):
    """There are K² / 2 of a leaf: with a copy for each expert they would be K³."""
    family = models.family(tmp_path, 4, shapes=dict.fromkeys("ab", (400, 130)))
    method, output = methods.model_stock(), tmp_path / "out"
    partial = interrupted(family, output, monkeypatch, "run", 0, method)
    (line,) = (partial / ".merge" / "answers.jsonl").read_text().splitlines()
    assert len(line) < 2 * 10 * 25 + 200  # two leaves' 10 products of two, in digits
    with monkeypatch.context() as patched:
        patched.setattr(passes.Passes, "_read", None)  # it is not called again
        found = resumed(family, output, method)
    loaded = {n: load_file(f"{e}/model.safetensors") for n, e in family[1].items()}
    start = load_file(f"{family[0]}/model.safetensors")
    assert found == models.bits(memory.merge(start, loaded, method))


@pytest.mark.parametrize("name", ["ties.0.bin", "digests.0.json"])
def test_a_journal_that_cannot_be_written_is_one_line(
    cancelling, expected, tmp_path, monkeypatch, name
):
    output = tmp_path / "out"
    interrupted(cancelling, output, monkeypatch, "_merge", 0)
    (tmp_path / "out.partial" / ".merge" / name).mkdir()
    with pytest.raises(UserError, match=f"cannot write .*{name}|cannot write .*merge"):
        stream.merge_checkpoints(*cancelling, TIES, str(output), **MERGE)
    (tmp_path / "out.partial" / ".merge" / name).rmdir()
    assert resumed(cancelling, output) == expected


def checkpoints_writer():
    from merging.checkpoints import safetensors_writer

    return safetensors_writer.SafetensorsWriter


def test_another_process_count_goes_on_with_a_block_whose_first_record_was_lost(
    cancelling, expected, tmp_path, monkeypatch
):
    """Records of one block in two files: the one that is whole counts."""
    output = tmp_path / "out"
    partial = interrupted(cancelling, output, monkeypatch, "_record", 0)
    journal = partial / ".merge"
    shutil.copy(journal / "blocks.0.jsonl", journal / "blocks.1.jsonl")
    text = (journal / "blocks.1.jsonl").read_text()
    (journal / "blocks.1.jsonl").write_text(text.replace("ties.0.bin", "ties.1.bin"))
    assert resumed(cancelling, output) == expected


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1e6, "beyond the range of float16 in kept"),
        (np.nan, "NaN or Inf in the weights of:\n  kept in 'the base"),
    ],
)
def test_a_leaf_that_is_kept_is_checked_as_a_merged_one(tmp_path, value, words):
    base = {"kept": np.array([value, 1], np.float32), "w": np.ones(3, np.float32)}
    expert = {"kept": np.ones(2, np.float32), "w": np.full(3, 2, np.float32)}
    base, expert = (
        models.save(tmp_path / n, m) for n, m in (("b", base), ("e", expert))
    )
    with pytest.raises(UserError, match=words):
        stream.merge_checkpoints(
            base,
            [expert],
            "task_arithmetic()",
            str(tmp_path / "out"),
            leaf_rules=["^kept$ => base"],
            dtype="float16",
        )
    assert not (tmp_path / "out").exists()


def test_a_negative_majority_that_overflows_is_refused(tmp_path):
    """Under a positive one the same merge is within float16's range."""
    base = {"a": np.full(64, -60000, np.float32)}
    steps = np.tile(np.array([[-9e3, 9e3], [9e3, -9e3]], np.float32), 16).reshape(2, 32)
    lean = np.full((2, 32), -1, np.float32)
    moved = [
        {"a": base["a"] + np.concatenate([s, n])}
        for s, n in zip(steps, lean, strict=True)
    ]
    family = (
        models.save(tmp_path / "base", base),
        [models.save(tmp_path / f"e{i}", e) for i, e in enumerate(moved)],
    )
    with pytest.raises(UserError, match="beyond the range of float16 in a"):
        stream.merge_checkpoints(
            *family, "ties(density=1)", str(tmp_path / "out"), dtype="float16"
        )


def test_a_guess_that_overflows_refuses_no_merge_that_the_majority_allows(tmp_path):
    """Blocks of "b" come when more votes are negative; in the end more are positive."""
    base = {"a": np.zeros((500, 300), "f4"), "b": np.zeros((2000, 300), "f4")}
    base["b"][900:950] = -60000
    moved = []
    for sign in (1, -1):
        steps = np.full((2000, 300), 0.25, "f4")
        steps[:900], steps[900:950] = 0, 9000 * sign
        moved.append({"a": base["a"] - 0.25, "b": base["b"] + steps})
    family = (
        models.save(tmp_path / "base", base),
        [models.save(tmp_path / f"e{i}", e) for i, e in enumerate(moved)],
    )
    output = tmp_path / "out"
    how = {"dtype": "float16", "memory_budget": "700kB"}
    stream.merge_checkpoints(*family, "ties(density=1)", str(output), **how)
    assert (load_file(output / "model.safetensors")["b"][900:950] == -51000).all()
