"""Paths in an object store: whole objects, locks with one holder, honest failures."""

import json
import os
import pickle
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from merging.cli.main import main
from merging.runtime import locks, preemption, storage, workdir
from merging.runtime.errors import Unreachable, UserError
from merging.runtime.progress import EventLog


@pytest.fixture
def place(object_store, request):
    """A folder of the store that no other test uses."""
    return storage.place(f"gs://store/{request.node.name.split('[')[0]}")


@pytest.mark.parametrize("where", ["here", "in a store"])
def test_a_folder_of_a_store_is_read_and_written_as_one_of_this_machine(
    where, place, tmp_path
):
    folder = tmp_path / "run" if where == "here" else place
    assert not folder.exists() and list(folder.glob("*")) == []
    storage.write_bytes(folder / "a.txt", b"old")
    storage.write_bytes(folder / "a.txt", b"hello")
    storage.write_json(folder / "deep" / "b.json", {"b": 1})
    assert folder.is_dir() and not folder.is_file() and (folder / "a.txt").is_file()
    assert sorted(p.name for p in folder.iterdir()) == ["a.txt", "deep"]
    assert [p.name for p in (folder / "deep").glob("*.json")] == ["b.json"]
    assert json.loads((folder / "deep" / "b.json").read_text()) == {"b": 1}
    assert (folder / "a.txt").read_bytes() == b"hello"
    with pytest.raises(FileNotFoundError) as missing:
        (folder / "gone").read_text()
    assert missing.value.errno == 2 and missing.value.filename == os.fspath(
        folder / "gone"
    )
    (folder / "gone").unlink(missing_ok=True)
    assert pickle.loads(pickle.dumps(folder)) == folder
    storage.remove(folder)
    storage.remove(folder)
    assert not folder.exists()


def test_parts_of_objects_are_read_and_many_are_joined_in_order(place):
    parts = [place / f"{n}" for n in range(3)]
    for n, part in enumerate(parts):
        part.write_bytes(bytes([n]) * (n + 1))
    (place / "whole").compose(parts)
    assert (place / "whole").read_bytes() == b"\0\1\1\2\2\2"
    assert (place / "whole").read_range(1, 3) == b"\1\1\2"
    assert place.find() == {place / "0": 1, place / "1": 2, place / "2": 3} | {
        place / "whole": 6
    }


def test_of_many_that_create_an_object_one_does(place):
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda n: (place / "x").create(b"%d" % n), range(8)))
    assert sorted(made) == [False] * 7 + [True]
    assert (place / "x").read_bytes() == b"%d" % made.index(True)


def test_an_object_whose_creation_got_no_answer_is_ones_own(object_store, place):
    object_store.faults["POST"].append("lost")
    assert (place / "x").create(b"mine") and not (place / "x").create(b"another's")


@pytest.mark.parametrize("fault", ["429", "503", "reset", "lost", "slow"])
def test_what_a_store_refuses_for_a_while_is_asked_again(object_store, place, fault):
    path = place / "x"
    for method, ask in {
        "POST": lambda: path.write_bytes(b"whole"),
        "GET": path.read_bytes,
        "DELETE": lambda: path.unlink(missing_ok=True),
    }.items():
        object_store.faults[method].extend([fault] * (1 if fault == "slow" else 2))
        assert ask() in (5, b"whole", None)
        assert not object_store.faults[method]
    assert not path.exists()


def test_a_store_that_does_not_answer_is_not_an_empty_one(object_store, place, capsys):
    storage.write_json(place / workdir.CONFIG, {"config_hash": "a", "config": {}})
    with pytest.raises(UserError, match="the run of another config"):
        workdir.require_own(place, "b", "sweep")
    object_store.faults["GET"].extend(["503"] * 100)
    try:
        with pytest.raises(Unreachable, match="HttpError.*see to the network"):
            workdir.require_own(place, "b", "sweep")
        assert main(["report", "--workdir", str(place)]) == 75
        object_store.faults["GET"].clear()
        object_store.faults["GET"].extend(["403"] * 100)
        assert main(["report", "--workdir", str(place)]) == 2
    finally:
        object_store.faults["GET"].clear()
    first, second = capsys.readouterr().err.splitlines()
    assert f"Then: merging report --workdir {place}" in first
    assert "see to the bucket, its permissions" in second


def held(path):
    def refusal(who):
        return UserError(f"{who} works here.")

    return locks.held(path, "the run", refusal)


def test_a_lock_in_a_store_has_one_holder_and_goes_with_it(place):
    path = place / "lock"
    with held(path):
        assert locks.holder(path)["pid"] == os.getpid() and locks.holder(path)["alive"]
        with pytest.raises(UserError, match=f"process {os.getpid()} on .* works here"):
            with held(path):
                pass
    assert not path.exists()


def test_a_process_that_is_ended_at_once_lets_go_of_its_lock(place, monkeypatch):
    """As after SIGTERM and the time that was left, or when another process fails."""
    monkeypatch.setattr(os, "_exit", lambda status: None)
    with held(place / "lock"):
        preemption._exit(75)
        assert not (place / "lock").exists()


def left(path, host):
    """A lock that a process left which is no more, on some machine."""
    gone = 2**22 + 1  # more than any process's number
    record = {"host": host, "pid": gone, "since": "then", "command": "merging sweep"}
    storage.write_json(path, record)
    return record


@pytest.mark.parametrize("host", [socket.gethostname(), "another"])
def test_of_those_who_find_the_lock_of_a_killed_process_one_takes_it(
    place, host, monkeypatch, capsys
):
    monkeypatch.setattr(locks, "EXPIRES", 0.5)
    path = place / host / "lock"
    left(path, host)
    inside, taken = threading.Barrier(4), []

    def try_it(_):
        inside.wait()
        try:
            with held(path):
                taken.append(1)
                inside.wait()
        except UserError:
            inside.wait()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(try_it, range(4)))
    assert taken == [1] and not path.exists()
    waited = "has the lock of the run: waiting up to" in capsys.readouterr().err
    assert waited == (host == "another")


def test_the_lock_of_a_process_that_lives_on_another_machine_is_its_own(
    place, monkeypatch
):
    monkeypatch.setattr(locks, "EXPIRES", 5)
    path, over = place / "lock", threading.Event()
    record = left(path, "another")

    def live():
        while not over.wait(0.1):
            storage.write_json(path, record)

    with ThreadPoolExecutor(1) as threads:
        threads.submit(live)
        try:
            with pytest.raises(UserError, match="on another, since then .* works here"):
                with held(path):
                    pass
        finally:
            over.set()
    assert locks.holder(path)["host"] == "another"


def wait_for(seen):
    until = time.monotonic() + 20
    while not seen():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_lock_is_renewed_also_where_an_answer_is_lost(
    place, object_store, monkeypatch
):
    monkeypatch.setattr(locks, "RENEW", 0.1)
    path = place / "lock"
    with held(path):
        for faults in ([], ["lost"], ["503", "reset"]):
            before = path.generation()
            object_store.faults["POST"].extend(faults)
            wait_for(lambda old=before: path.generation() != old)
            wait_for(lambda: not object_store.faults["POST"])
        assert not preemption.asked()
        assert locks.holder(path)["pid"] == os.getpid()
    assert not path.exists()


def test_a_lock_that_ends_while_it_is_renewed_goes(place, object_store, monkeypatch):
    monkeypatch.setattr(locks, "RENEW", 0.1)
    monkeypatch.setattr(locks, "LOOK", 0.01)
    path = place / "lock"
    with held(path):
        before = path.generation()
        # It is written anew, which this process is only told by its second try.
        object_store.faults["POST"].extend(["lost", "slow"])
        wait_for(lambda: path.generation() != before)
    wait_for(lambda: not path.exists())


def test_who_lost_its_lock_stops_and_leaves_the_other_its_own(place, monkeypatch):
    monkeypatch.setattr(locks, "RENEW", 0.1)
    asked = []
    monkeypatch.setattr(preemption, "ask", asked.append)
    path = place / "lock"
    with held(path):
        left(path, "another")
        wait_for(lambda: asked)
    (reason,) = asked
    assert "the lock of the run is no longer this process's" in reason
    assert "on another, since then" in reason
    assert locks.holder(path)["host"] == "another"


def test_a_log_in_a_store_goes_on_where_another_machine_left_it(
    place, monkeypatch, tmp_path
):
    for machine in ("one", "other"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / machine))
        log = EventLog(place / "events.jsonl")
        for number in range(2):
            log.write("step", machine=machine, number=number)
        log.settle()
    lines = (place / "events.jsonl").read_text().splitlines()
    assert [(e["machine"], e["number"]) for e in map(json.loads, lines)] == [
        ("one", 0),
        ("one", 1),
        ("other", 0),
        ("other", 1),
    ]


def test_without_a_bucket_or_its_client_a_store_is_refused(monkeypatch):
    with pytest.raises(UserError, match="--workdir gs://: name a bucket"):
        storage.place("gs://", "--workdir")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="gs:// needs gcsfs: pip install 'merging.gcs"):
        storage.place("gs://b/x", "--workdir")
