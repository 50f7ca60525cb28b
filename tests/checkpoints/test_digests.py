"""The digest of a checkpoint: every byte of it, and each file hashed once."""

import hashlib
import os

import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file, save_file

from merging import UserError, checkpoints
from merging.checkpoints import digests


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def settled(monkeypatch):
    """Have a file that was just written count as one of long ago."""
    monkeypatch.setattr(digests, "_SETTLED_NS", -1)


@pytest.fixture
def hashed(monkeypatch):
    """Return the files that are read to be hashed."""
    found, original = [], digests._hash
    monkeypatch.setattr(
        digests,
        "_hash",
        lambda file, *of: found.append(file.path.name) or original(file, *of),
    )
    return found


def save(folder, change=None, size=5_000_000):
    folder.mkdir(exist_ok=True)
    tensor = np.full(size, 7, np.uint8)
    if change is not None:
        tensor[change] += 1
    save_file({"x": tensor}, folder / "model.safetensors")
    return checkpoints.open_checkpoint(folder)


def test_a_change_of_one_byte_anywhere_is_seen(tmp_path):
    one = checkpoints.content(save(tmp_path / "one"))
    assert one == checkpoints.content(save(tmp_path / "same"))
    bytes_ = (tmp_path / "one" / "model.safetensors").read_bytes()
    assert one == {"model.safetensors": hashlib.sha256(bytes_).hexdigest()}
    for number, place in enumerate((0, 2_345_678, 4_999_999)):
        assert checkpoints.content(save(tmp_path / f"{number}", place)) != one


def test_a_file_is_hashed_once_until_it_changes(tmp_path, settled, hashed):
    source = save(tmp_path / "m")
    first = checkpoints.content(source)
    assert checkpoints.content(source) == first
    assert len(hashed) == 1
    path = tmp_path / "m" / "model.safetensors"
    before = os.stat(path)
    with open(path, "r+b") as file:
        file.seek(3_000_000)
        file.write(b"\0")
    # Nor does it help to say that it was not changed.
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert checkpoints.content(source) != first
    assert len(hashed) == 2


def test_a_file_of_this_moment_is_not_remembered(tmp_path, hashed):
    source = save(tmp_path / "m")
    for _ in range(2):
        checkpoints.content(source)
    assert len(hashed) == 2


def test_without_a_place_to_remember_it_is_hashed_again(
    tmp_path, cache, settled, hashed
):
    cache.write_text("no folder")
    source = save(tmp_path / "m")
    assert checkpoints.content(source) == checkpoints.content(source)
    assert len(hashed) == 2


def test_what_is_remembered_is_a_digest_or_not_believed(
    tmp_path, cache, settled, hashed
):
    source = save(tmp_path / "m")
    first = checkpoints.content(source)
    (kept,) = (path for path in cache.rglob("*") if path.is_file())
    kept.write_text("no digest")
    assert checkpoints.content(source) == first
    assert len(hashed) == 2


def test_a_file_that_changes_while_it_is_hashed_is_refused(tmp_path, monkeypatch):
    save(tmp_path / "m")
    path = epath.Path(tmp_path / "m" / "model.safetensors")

    def change(file, length):
        os.utime(path, ns=(1, 1))
        return "0" * 64

    monkeypatch.setattr(digests, "_hash", change)
    with pytest.raises(UserError, match="was changed while it was being read"):
        digests.of_file(path)
    assert load_file(path)["x"][0] == 7
