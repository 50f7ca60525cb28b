"""Files appear whole or not at all, on whatever file system."""

import errno
import fnmatch
import os
import stat

import pytest

from merging.runtime import storage
from merging.runtime.errors import UserError


def refusing_folders(monkeypatch, number: int) -> None:
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)


def test_a_file_system_that_syncs_no_folders_is_written_to(tmp_path, monkeypatch):
    refusing_folders(monkeypatch, errno.EINVAL)
    storage.write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"


def test_a_disk_that_fails_is_not_taken_for_one(tmp_path, monkeypatch):
    refusing_folders(monkeypatch, errno.EIO)
    with pytest.raises(UserError, match="cannot write"):
        storage.write_bytes(tmp_path / "a", b"new")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_a_new_file_has_the_modes_that_the_user_wants(
    tmp_path, monkeypatch, umask, mode
):
    """Without asking for the umask: that is to change it, for every thread."""
    before = os.umask(umask)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", lambda _: pytest.fail("the umask is changed"))
            storage.write_bytes(tmp_path / "a", b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode
    assert os.listdir(tmp_path) == ["a"]


def test_a_file_that_is_not_finished_has_the_name_that_others_clear_away(
    tmp_path, monkeypatch
):
    seen, replace = [], os.replace

    def told(fresh, path):
        seen.append(os.path.basename(fresh))
        replace(fresh, path)

    monkeypatch.setattr(os, "replace", told)
    for content in (b"one", b"two"):
        storage.write_bytes(tmp_path / "a", content)
    assert all(fnmatch.fnmatch(name, ".a.*.tmp") for name in seen)
    assert len(set(seen)) == 2
    assert (tmp_path / "a").read_bytes() == b"two"


@pytest.mark.parametrize(
    ("text", "size"),
    [("1GB", 10**9), ("500 mb", 5 * 10**8), ("2GiB", 2**31), (7, 7), ("1.5K", 1500)],
)
def test_a_size_is_a_number_with_or_without_a_unit(text, size):
    assert storage.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "1PB", "0", "0.1", "9" * 400, "9e9", "9ET"])
def test_what_is_no_size_is_refused_in_a_line(text):
    with pytest.raises(UserError, match="budget '.*is no size; write 1GB") as caught:
        storage.parse_size(text, "budget")
    assert len(str(caught.value)) < 150
