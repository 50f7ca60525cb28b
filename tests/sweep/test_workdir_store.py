"""A workdir's steps are finished whole or not at all, here and in an object store."""

import json

import pytest
from fake_steps import step

from merging.runtime import storage
from merging.sweep.store import Broken, Store


@pytest.fixture(params=["here", "in an object store"])
def folder(request, tmp_path):
    if request.param == "here":
        return tmp_path
    request.getfixturevalue("object_store")
    return storage.place(f"gs://store/{request.node.name.split('[')[0]}")


def test_a_step_is_begun_finished_failed_and_forgotten(folder):
    store, one, other = Store(folder), step("one"), step("other")
    assert not store.begun(one) and not store.finished(one)
    storage.write_bytes(store.partial(one) / "checkpoint" / "weights", b"1")
    assert store.begun(one) and not store.finished(one)
    store.fail(one, "no room")
    store.publish(one, {"loss": 1.0})
    for found in (store, Store(folder)):
        assert found.finished(one) and not found.begun(one)
        assert found.output(one) == {"key": one.key, "loss": 1.0}
        assert found.failure(one) is None
        assert (found.path(one) / "checkpoint" / "weights").read_bytes() == b"1"
    store.fail(other, "too large")
    assert store.failure(other) == "too large" and not store.finished(other)
    store.discard(one)
    assert not store.finished(one) and not store.begun(one)
    with pytest.raises(Broken, match="one: "):
        store.output(one)


def test_what_another_has_finished_is_found_at_once_and_damage_is_not(folder):
    store, steps = Store(folder), [step(name) for name in ("one", "two", "three")]
    for number, done in enumerate(steps):
        store.publish(done, {"number": number})
    storage.write_bytes(store.path(steps[1]) / "output.json", b'{"key": ')
    other = Store(folder)
    other.look()
    assert [other.output(s)["number"] for s in (steps[0], steps[2])] == [0, 2]
    assert other.finished(steps[1])
    with pytest.raises(Broken):
        other.output(steps[1])
    other.discard(steps[0])
    assert not other.finished(steps[0])


def test_a_kill_while_a_step_is_forgotten_leaves_none_that_looks_finished(
    folder, monkeypatch
):
    store, one = Store(folder), step("one")
    storage.write_bytes(store.partial(one) / "checkpoint" / "weights", b"1")
    store.publish(one, {})

    def killed(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "remove", killed)
    with pytest.raises(KeyboardInterrupt):
        store.discard(one)
    assert not Store(folder).finished(one)
    monkeypatch.undo()
    store.publish(one, {"again": True})
    assert json.loads((store.path(one) / "output.json").read_text())["again"]
