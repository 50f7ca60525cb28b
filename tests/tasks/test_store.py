"""Examples on disk are those in memory, in any number of parts, whoever wrote them."""

import os

import numpy as np
import pytest
import toy_suite

from merging import training
from merging.runtime import processes
from merging.runtime.errors import UserError
from merging.tasks import Generated, Suite, examples, materialise, parts, store
from merging.training import batches

FILES = 3


class Lines(Generated):
    """The toy's texts from several files, a prompt and an answer to a line."""

    folder = ""

    def data_source(self, what):
        from merging.tasks.registration import seqio

        return seqio.TextLineDataSource({"train": f"{self.folder}/{what}-*.txt"})

    def render(self, dataset, prompt):
        from merging.tasks.texts import tf

        def parsed(line):
            text = tf.strings.split(line, "\t")
            return {"inputs": text[0], "targets": text[1]}

        return (lambda ds: ds.map(parsed),)

    def rate(self, dataset, prompt):
        return 3.0 if dataset == "copy" else 1.0


@pytest.fixture(scope="module")
def lines(tmp_path_factory) -> Suite:
    folder = tmp_path_factory.mktemp("lines")
    for name in ("copy", "bag"):
        rows = toy_suite.examples(name, "train", 0, 23)
        for number in range(FILES):
            texts = [f"{r['inputs']}\t{r['targets']}\n" for r in rows[number::FILES]]
            (folder / f"{name}-{number}.txt").write_text("".join(texts))
    here = type("Here", (Lines,), {"folder": str(folder)})
    return Suite("lines", here("toy_suite"))


@pytest.fixture(scope="module")
def alone(lines, tmp_path_factory):
    return store(lines, "echo", "train", 32, tmp_path_factory.mktemp("alone"))


def assert_equal(found, expected):
    length = found.tokens.shape[1]
    np.testing.assert_array_equal(found.tokens, expected.tokens[:, :length])
    np.testing.assert_array_equal(found.loss_weights, expected.loss_weights[:, :length])
    assert not expected.tokens[:, length:].any()


@pytest.mark.parametrize("what", ["pretrain", "copy", "pick"])
def test_what_is_stored_is_what_is_materialised(toy, tmp_path, what):
    found = store(toy, what, "train", 40, tmp_path)
    expected = materialise(toy, what, "train", 40)
    assert found.count == len(expected.tokens)
    assert found.length in (16, 32) and found.largest == expected.tokens.max()
    assert_equal(found.take(np.arange(found.count)), expected)
    some = np.array([3, 0, 3, found.count - 1])
    assert_equal(found.take(some), examples.TokenArrays(*(x[some] for x in expected)))


def test_training_draws_the_same_batches_from_disk_and_memory(toy, tmp_path):
    held = batches.opened(
        training.Examples(*materialise(toy, "echo", "train", 32)), 100
    )
    found = store(toy, "echo", "train", 32, tmp_path)
    rows = found.draw(7, 5, 90)
    np.testing.assert_array_equal(rows, held.draw(7, 5, 90))
    np.testing.assert_array_equal(found.lengths(rows), held.lengths(rows))


def test_files_are_parts_that_processes_share_out(lines, alone, tmp_path, monkeypatch):
    wrote = []
    with monkeypatch.context() as patch:
        patch.setattr(examples, "Stored", lambda *arguments: None)
        patch.setattr(processes, "count", lambda: 2)
        for process in (0, 1):
            patch.setattr(processes, "index", lambda process=process: process)
            store(lines, "echo", "train", 32, tmp_path / "shared")
            wrote.append(len(list((tmp_path / "shared").rglob("tokens"))))
    assert wrote == [FILES, 2 * FILES]
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "shared").rglob("tokens")}
    shared = store(lines, "echo", "train", 32, tmp_path / "shared")
    assert all(p.stat().st_mtime_ns == time for p, time in times.items())
    assert shared.digest == alone.digest and shared.count == 46
    every = np.arange(46)
    assert_equal(shared.take(every), alone.take(every))
    texts = {lines.tokenizer.decode(row) for row in alone.take(every).tokens}
    written = [*toy_suite.examples("copy", "train", 0, 23)]
    assert {f"{r['inputs']} {r['targets']}" for r in written} <= texts


def test_another_machine_reads_what_one_has_kept_in_an_object_store(
    lines, alone, object_store, tmp_path, monkeypatch
):
    for machine in ("one", "other"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / machine))
        kept = store(lines, "echo", "train", 32, "gs://store/data")
        monkeypatch.setattr(parts, "write", None)
        monkeypatch.setattr(parts, "plan", lambda *_: FILES)
        assert kept.digest == alone.digest
        every = np.arange(alone.count)
        np.testing.assert_array_equal(kept.take(every), alone.take(every))
    assert len(object_store.names("data/stored/")) == 2 * (3 * FILES + 1)


def test_a_mixture_is_drawn_by_its_rates(alone):
    drawn = alone.draw(0, 0, 4096)
    assert np.sum(drawn < 23) == 3 * 1024  # "copy", whose rate is 3 to 1


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-4])


def flipped(path):
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("file", ["tokens", "bounds", "part.json"])
@pytest.mark.parametrize("damage", [cut_short, flipped])
def test_a_damaged_part_is_written_again_with_a_warning(toy, tmp_path, damage, file):
    whole = store(toy, "copy", "train", 32, tmp_path)
    (path,) = tmp_path.rglob(file)
    content = path.read_bytes()
    damage(path)
    with pytest.warns(UserWarning, match="part-00000-of-00001 is not readable, making"):
        again = store(toy, "copy", "train", 32, tmp_path)
    assert path.read_bytes() == content and again.digest == whole.digest


def test_a_part_that_is_cut_short_before_it_is_opened_is_named(toy, tmp_path):
    store(toy, "copy", "train", 32, tmp_path)
    (path,) = tmp_path.rglob("tokens")
    cut_short(path)
    with pytest.raises(UserError, match=r"part-00000-of-00001 was cut short"):
        examples.Stored("copy", [[path.parent]], [1.0], 32)


def test_unknown_splits_and_long_examples_are_refused(toy, tmp_path):
    with pytest.raises(UserError, match="split"):
        store(toy, "pretrain", "test", 32, tmp_path)
    with pytest.raises(UserError, match="more than the 8 allowed"):
        store(toy, "copy", "train", 8, tmp_path)


def test_a_whole_part_that_others_may_be_reading_is_never_removed(
    toy, tmp_path, monkeypatch
):
    read = parts._read
    folder = tmp_path / "task"
    part = parts.Part(toy.training("copy"), "train", 32, 0, 1, folder)

    def overtaken(suite, mine):
        monkeypatch.setattr(parts, "_read", read)
        parts.write(toy, part)  # on another machine, with the same process id
        files.update({p: p.stat().st_ino for p in part.path.iterdir()})
        yield from read(suite, mine)

    files = {}
    monkeypatch.setattr(parts, "_read", overtaken)
    parts.write(toy, part)
    parts.write(toy, part)
    assert {p: p.stat().st_ino for p in part.path.iterdir()} == files
    assert list(folder.iterdir()) == [part.path] and parts.is_whole(part.path)


def test_a_write_that_fails_leaves_nothing(toy, tmp_path):
    part = parts.Part(toy.training("copy"), "train", 8, 0, 1, tmp_path / "task")
    with pytest.raises(UserError, match="more than the 8 allowed"):
        parts.write(toy, part)
    assert list((tmp_path / "task").iterdir()) == []


def test_who_finishes_a_part_second_leaves_the_first(toy, tmp_path, monkeypatch):
    read, found = parts._read, []

    def overtaken(suite, part):
        monkeypatch.setattr(parts, "_read", read)
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 1)
            found.append(store(toy, "copy", "train", 32, tmp_path))
        yield from read(suite, part)

    monkeypatch.setattr(parts, "_read", overtaken)
    second = store(toy, "copy", "train", 32, tmp_path)
    assert second.digest == found[0].digest
    (folder,) = (tmp_path / "stored").iterdir()
    assert {p.name for p in folder.iterdir()} == {"plan.json", "part-00000-of-00001"}
