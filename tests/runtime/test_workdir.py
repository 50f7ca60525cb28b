"""A workdir is one config's and one driver's, and what isn't ours stays as it is."""

import errno
import fcntl
import json
import os
import socket
import threading

import pytest

from merging.runtime import workdir
from merging.runtime.errors import UserError


def test_a_models_folder_is_no_workdir_and_keeps_its_config(tmp_path):
    described = '{"architectures": ["LlamaForCausalLM"]}'
    (tmp_path / "config.json").write_text(described)
    (tmp_path / "model.safetensors").write_text("weights")
    with pytest.raises(UserError, match="holds no sweep; choose another"):
        workdir.claim(tmp_path, {}, "abc", "sweep")
    assert (tmp_path / "config.json").read_text() == described


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.write_text("[" * 100_000)]
)
def test_a_config_that_is_none_of_ours_is_another_folder(tmp_path, make):
    make(tmp_path / workdir.CONFIG)
    with pytest.raises(UserError, match="holds no sweep; choose another"):
        workdir.claim(tmp_path, {}, "abc", "sweep")
    assert workdir.moved(tmp_path, {}, ()) == workdir.runs([tmp_path]) == {}


def test_a_claim_holds_for_its_config_alone(tmp_path):
    workdir.claim(tmp_path, {"a": 1}, "abc", "sweep")
    workdir.claim(tmp_path, {"a": 1}, "abc", "sweep")
    with pytest.raises(UserError, match="another config"):
        workdir.claim(tmp_path, {"a": 2}, "def", "sweep")


def test_what_moved_are_axes_alone(tmp_path):
    held = {"seeds": 1, "rate": 1, "methods": ["ties"]}
    workdir.claim(tmp_path, held, "abc", "sweep")

    def moved(**values):
        return workdir.moved(tmp_path, held | values, ("seeds", "methods"))

    assert moved() == {} and moved(seeds=2) == {"seeds": (1, 2)}
    assert moved(seeds=2, rate=1.0) == moved(seeds=2, more=None) == {}
    for config in ("[[1, 2]]", "null", '"seeds"', "[]"):
        text = f'{{"config_hash": "abc", "config": {config}}}'
        (tmp_path / workdir.CONFIG).write_text(text)
        assert moved(seeds=2) == {}


def test_a_second_driver_is_refused_and_told_of_the_first(tmp_path):
    with workdir.only_driver(tmp_path):
        with pytest.raises(UserError, match=f"process {os.getpid()} on "):
            with workdir.only_driver(tmp_path):
                pass
        assert workdir.driver(tmp_path)["alive"] is True
    assert workdir.driver(tmp_path) is None


def test_one_who_looks_at_the_lock_refuses_no_driver(tmp_path):
    (tmp_path / workdir.LOCK).touch()
    # What `merging status` does, for longer than it takes.
    looking = open(tmp_path / workdir.LOCK)
    fcntl.flock(looking, fcntl.LOCK_SH)
    away = threading.Timer(0.2, looking.close)
    away.start()
    with workdir.only_driver(tmp_path):
        pass
    away.join()


def test_a_record_that_was_cut_or_lacks_a_part_names_nobody(tmp_path):
    for record in ("", "null", "[1]", '{"pid": 1}', '{"host": "a", "pid": 1'):
        (tmp_path / workdir.LOCK).write_text(record)
        assert workdir.driver(tmp_path) is None


def listing(folder):
    """Return what lies in a folder: names, what they are, and content."""
    return {
        path.name: (path.lstat().st_mode, path.is_file() and path.read_bytes())
        for path in folder.iterdir()
    }


def make_link(path):
    path.with_name("thesis.txt").write_text("years of work")
    path.symlink_to(path.with_name("thesis.txt"))


STRANGERS = {
    "text": lambda path: path.write_text("[[package]]\nname = 'numpy'\n"),
    "JSON": lambda path: path.write_text('{"host": "db", "port": 5432}'),
    "deep JSON": lambda path: path.write_text("[" * 100_000),
    "a folder": lambda path: path.mkdir(),
    "a link": make_link,
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a FIFO": os.mkfifo,
}


@pytest.mark.parametrize("what", STRANGERS)
def test_what_is_no_lock_of_ours_is_left_as_it_is(tmp_path, what):
    path = tmp_path / workdir.LOCK
    STRANGERS[what](path)
    before = listing(tmp_path)
    assert workdir.driver(tmp_path) is None
    with pytest.raises(UserError, match=f"{path}.*"):
        with workdir.only_driver(tmp_path):
            pass
    assert listing(tmp_path) == before


def test_a_lock_that_was_cut_is_taken_over(tmp_path):
    for left in ("", "\0" * 90, '{"host": "a", "pid": 1'):
        (tmp_path / workdir.LOCK).write_text(left)
        with workdir.only_driver(tmp_path):
            assert workdir.driver(tmp_path)["pid"] == os.getpid()


@pytest.fixture
def no_locks(monkeypatch):
    """A file system without locks, as FUSE's and some Lustre's are."""

    def refuse(*_):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.parametrize(
    ("host", "pid", "refused"),
    [
        (socket.gethostname(), os.getppid(), True),
        (socket.gethostname(), 2**22 + 1, False),  # more than there can be
        # Killed in a container, whose next start has the same numbers.
        (socket.gethostname(), os.getpid(), False),
        ("elsewhere", 1, False),
    ],
    ids=("alive", "ended", "numbered as this one", "of another machine"),
)
def test_without_locks_the_process_of_the_record_is_looked_for(
    tmp_path, no_locks, capsys, host, pid, refused
):
    record = {"host": host, "pid": pid, "since": "then", "command": "merging sweep"}
    (tmp_path / workdir.LOCK).write_text(json.dumps(record))
    if refused:
        with pytest.raises(UserError, match=f"process {pid} on {host}, since then"):
            with workdir.only_driver(tmp_path):
                pass
        return
    with workdir.only_driver(tmp_path):
        pass
    assert ("has no locks" in capsys.readouterr().err) == (host == "elsewhere")
