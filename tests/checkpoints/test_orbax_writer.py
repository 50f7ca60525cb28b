"""An Orbax output: what stock checkpointers open, whole or not there, and only ours."""

import contextlib
import itertools
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as v0
import pytest
import stock_orbax as stock
from absl import logging
from orbax.checkpoint import v1 as ocp

from merging import UserError, checkpoints
from merging.checkpoints import errors, orbax_writer
from merging.runtime import sharding, storage, tree


def leaves_of(source):
    return tree.flatten(source.abstract)


@contextlib.contextmanager
def copied(source, output):
    """Write what a source holds into an Orbax output; the user publishes it."""
    abstract, skeleton = leaves_of(source), source.skeleton
    begun = checkpoints.create(str(output), "orbax", abstract, skeleton=skeleton)
    with begun as writer:
        for name, leaf in abstract.items():
            flat = np.empty(int(np.prod(leaf.shape)), leaf.dtype)
            source.read_into(name, 0, flat)
            writer.write(name, 0, flat)
        yield writer


def begin(output, format="orbax", shape=(3,), paths=("w",)):
    of = {path: jax.ShapeDtypeStruct(shape, np.float32) for path in paths}
    with checkpoints.create(str(output), format, of):
        pass


def by_standard(path, target):
    with v0.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path, target)


def by_pytree(path, target):
    how = target and v0.checkpoint_utils.construct_restore_args(target)
    return v0.PyTreeCheckpointer().restore(path, target, restore_args=how)


READERS = [by_standard, by_pytree, ocp.load]


@pytest.mark.parametrize("save", [stock.standard, stock.plain_files, stock.by_v1])
def test_it_opens_with_the_checkpointer_that_wrote_its_input(tmp_path, save, caplog):
    """Lists stay lists, and what holds no weights stays where it was."""
    source = checkpoints.open_checkpoint(save(tmp_path / "in", stock.params()))
    with copied(source, tmp_path / "out") as writer:
        writer.finish({"README.md": b"hello"})
    mesh = sharding.make_mesh({"fsdp": 2, "data": 4})
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=split),
        stock.params(),
    )
    logging.get_absl_logger().addHandler(caplog.handler)
    for read in READERS:
        for wanted in (target, None):
            found = read(tmp_path / "out", wanted)
            assert jax.tree.structure(found) == jax.tree.structure(target)
            jax.tree.map(np.testing.assert_array_equal, found, stock.params())
            assert wanted is None or found["embed"].sharding == split
    assert "data files not found" not in caplog.text
    assert (tmp_path / "out" / "README.md").read_bytes() == b"hello"
    again = checkpoints.open_checkpoint(tmp_path / "out")
    assert again.skeleton == source.skeleton


def test_reading_one_logs_no_warning(tmp_path, caplog):
    source = checkpoints.open_checkpoint(stock.standard(tmp_path / "in", {"a": 1.0}))
    with copied(source, tmp_path / "out") as writer:
        writer.finish({})
    logging.get_absl_logger().addHandler(caplog.handler)
    assert checkpoints.restore(tmp_path / "out") == {"a": 1.0}
    assert caplog.text == ""


@pytest.mark.parametrize(("shape", "files"), [((2, 1009, 4), 8), ((3, 4099), 15)])
def test_a_prime_axis_is_cut_into_few_chunks_that_every_checkpointer_reads(
    tmp_path, monkeypatch, shape, files
):
    monkeypatch.setattr(orbax_writer, "CHUNK_BYTES", 4096)
    values = np.random.default_rng(0).standard_normal(shape, np.float32)
    flat, written = values.reshape(-1), {}
    of = {"w": jax.ShapeDtypeStruct(shape, values.dtype)}
    for pieces in (1, shape[0]):
        output = tmp_path / str(pieces)
        with checkpoints.create(str(output), "orbax", of) as writer:
            step = len(flat) // pieces
            assert step % writer.granularity("w") == 0
            for start in reversed(range(0, len(flat), step)):
                writer.write("w", start, flat[start : start + step])
            writer.finish({})
        for read in READERS:
            np.testing.assert_array_equal(read(output, None)["w"], values)
        np.testing.assert_array_equal(checkpoints.restore(output)["w"], values)
        written[pieces] = {p.name: p.read_bytes() for p in (output / "w").iterdir()}
    assert written[1] == written[shape[0]]
    assert len(written[1]) == files + 1  # and what describes them


def thesis(partial):
    partial.mkdir()
    (partial / "thesis.txt").write_text("years of work")


def other_layout(partial):
    partial.mkdir()
    (partial / "layout.json").write_text('{"made_by": "a garden"}')


def half_json(partial):
    partial.mkdir()
    (partial / "layout.json").write_text('{"made_by": ')


def weights(partial):
    partial.mkdir()
    (partial / "mine.safetensors").write_text("weeks of training")


def link(partial):
    partial.with_name("elsewhere").mkdir()
    partial.symlink_to("elsewhere")


@pytest.mark.parametrize("format", checkpoints.FORMATS)
@pytest.mark.parametrize("make", [thesis, other_layout, half_json, weights, link])
def test_what_we_did_not_begin_is_left_alone(tmp_path, make, format):
    make(tmp_path / "out.partial")
    before = {p: p.stat().st_size for p in tmp_path.rglob("*")}
    with pytest.raises(
        UserError, match=r"out.partial (exists.*|is a link)\. Move"
    ) as e:
        begin(tmp_path / "out", format)
    assert "elete" not in str(e.value)
    assert {p: p.stat().st_size for p in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(("one", "other"), itertools.permutations(checkpoints.FORMATS))
def test_an_unfinished_output_of_the_other_format_is_left_alone(tmp_path, one, other):
    begin(tmp_path / "out", one)
    before = {p: p.stat().st_size for p in tmp_path.rglob("*")}
    with pytest.raises(UserError, match="of another merge, laid out differently"):
        begin(tmp_path / "out", other)
    assert {p: p.stat().st_size for p in tmp_path.rglob("*")} == before


class Killed(BaseException):
    pass


def kill_at(patch, number):
    """Stop before the number-th thing that publishing does to the disk."""
    count = 0

    def stopping(function):
        def call(*args, **settings):
            nonlocal count
            count += 1
            if count == number:
                raise Killed
            return function(*args, **settings)

        return call

    for owner, name in (
        (os, "rename"),
        (os, "replace"),
        (os, "rmdir"),
        (os, "unlink"),
        (os, "fsync"),
        (Path, "unlink"),
        (shutil, "rmtree"),
    ):
        patch.setattr(owner, name, stopping(getattr(owner, name)))


@contextlib.contextmanager
def written(output, format):
    of = {"a": jax.ShapeDtypeStruct((2,), np.float32)}
    with checkpoints.create(str(output), format, of) as writer:
        writer.write("a", 0, np.ones(2, np.float32))
        yield writer


def value(output):
    out = np.empty(2, np.float32)
    checkpoints.open_checkpoint(output).read_into("a", 0, out)
    return out.tolist()


@pytest.mark.parametrize("format", checkpoints.FORMATS)
def test_a_kill_while_it_is_published_loses_nothing(tmp_path, format):
    files = {"manifest.json": b"{}"}
    for number in range(1, 500):
        output = tmp_path / str(number) / "out"
        with written(output, format) as writer, pytest.MonkeyPatch.context() as patch:
            journal = Path(writer.folder) / ".merge"
            journal.mkdir()
            (journal / "done").write_text("all")
            kill_at(patch, number)
            try:
                writer.finish(files)
                break
            except Killed:
                pass
        if not output.exists():  # its data are there, and only published again
            assert (journal / "done").exists()
            of = {"a": jax.ShapeDtypeStruct((2,), np.float32)}
            with checkpoints.create(str(output), format, of) as again:
                again.finish(files)
        elif number % 2:  # what is beside it goes when the name is used again
            assert value(output) == [1, 1]
            output.rename(tmp_path / str(number) / "first")
            with written(output, format) as again:
                assert not journal.exists()
                again.finish(files)
            shutil.rmtree(tmp_path / str(number) / "first")
        else:  # or looked at again
            checkpoints.clear(str(output))
        assert value(output) == [1, 1]
        left = [p.name for p in output.parent.iterdir()]
        # An empty folder may be anyone's.
        assert left == ["out"] or not list(Path(f"{output}.partial").iterdir())
    assert (4 if format == "safetensors" else 15) < number < 50
    assert [p.name for p in output.parent.iterdir()] == ["out"]


def test_only_what_has_no_content_is_cleared_away(tmp_path):
    with written(tmp_path / "out", "safetensors"):
        pass
    checkpoints.clear(str(tmp_path / "out"))
    assert (tmp_path / "out.partial" / "checkpoint" / "model.safetensors").exists()
    (tmp_path / "other.partial").mkdir()
    (tmp_path / "other.partial" / "thesis.txt").write_text("years of work")
    checkpoints.clear(str(tmp_path / "other"))
    assert (tmp_path / "other.partial" / "thesis.txt").exists()


@pytest.mark.parametrize("format", checkpoints.FORMATS)
def test_what_is_left_of_a_published_output_blocks_no_other_layout(tmp_path, format):
    begin(tmp_path / "out", format)
    shutil.rmtree(tmp_path / "out.partial" / "checkpoint")  # it has its name, and moved
    begin(tmp_path / "out", format, shape=(4,))
    with pytest.raises(UserError, match="of another merge, laid out differently"):
        begin(tmp_path / "out", format)


def test_a_mark_stays_with_what_a_file_system_does_not_let_go_of(tmp_path, monkeypatch):
    begin(tmp_path / "out", "safetensors")
    shutil.rmtree(tmp_path / "out.partial" / "checkpoint")
    (tmp_path / "out.partial" / ".merge").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(storage, "remove", lambda path: None)  # as NFS of open files
        checkpoints.clear(str(tmp_path / "out"))
    assert (tmp_path / "out.partial" / "layout.json").exists()
    checkpoints.clear(str(tmp_path / "out"))
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("format", checkpoints.FORMATS)
def test_a_strangers_files_are_not_published_and_not_removed(tmp_path, format):
    partial = tmp_path / "out.partial"
    with written(tmp_path / "out", format) as writer:
        (partial / "mydata").mkdir()
        (partial / "mydata" / "thesis.txt").write_text("years of work")
        (partial / "checkpoint" / "notes.txt").write_text("mine")
        with pytest.raises(UserError, match="checkpoint holds notes.txt, .* Move it"):
            writer.finish({})
    assert not (tmp_path / "out").exists()
    (partial / "checkpoint" / "notes.txt").unlink()
    with written(tmp_path / "out", format) as writer:
        writer.finish({})
    assert not (tmp_path / "out" / "notes.txt").exists()
    assert [str(p.relative_to(partial)) for p in sorted(partial.rglob("*"))] == [
        "mydata",
        "mydata/thesis.txt",
    ]


def test_files_and_folders_are_on_the_disk_before_the_name(tmp_path, monkeypatch):
    synchronised, renamed = set(), {}
    fsync, rename = os.fsync, os.rename

    def told(descriptor):
        synchronised.add(os.path.realpath(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def renaming(old, new):
        renamed[str(new)] = set(synchronised)
        rename(old, new)

    source = checkpoints.open_checkpoint(stock.standard(tmp_path / "in", {"a": 1.0}))
    with copied(source, tmp_path / "out") as writer:
        monkeypatch.setattr(os, "fsync", told)
        monkeypatch.setattr(os, "rename", renaming)
        writer.finish({"manifest.json": b"{}"})
    content = tmp_path / "out.partial" / "checkpoint"
    assert str(content) in renamed[str(tmp_path / "out")]
    # Some are written under another name, such as .NAME.x.tmp, and renamed.
    files = [os.path.basename(p).lstrip(".") for p in renamed[str(tmp_path / "out")]]
    for name in ("manifest.json", "_METADATA", "_CHECKPOINT_METADATA"):
        assert any(file.startswith(name) for file in files)
    assert str(tmp_path) in synchronised


def test_what_a_killed_write_left_is_not_published(tmp_path):
    source = checkpoints.open_checkpoint(stock.standard(tmp_path / "in", {"a": 1.0}))
    with copied(source, tmp_path / "out") as writer:
        content = tmp_path / "out.partial" / "checkpoint"
        (content / "._METADATA.x1y2.tmp").write_bytes(b"half")
        writer.finish({})
    assert not list((tmp_path / "out").glob(".*.tmp"))


def test_a_failing_disk_is_one_line_whoever_reports_it():
    said = 'Error writing "x/0" [Error fdatasyncing: 5 (Input/output error)]'
    with (
        pytest.raises(UserError, match="cannot write out: Input/output error;"),
        errors.writing("out"),
    ):
        raise ValueError(said)  # as TensorStore does


def test_an_unfinished_output_is_no_checkpoint(tmp_path):
    source = checkpoints.open_checkpoint(stock.standard(tmp_path / "in", {"a": 1.0}))
    with copied(source, tmp_path / "out"):
        pass
    with pytest.raises(UserError, match="unfinished output .* give its command again"):
        checkpoints.open_checkpoint(tmp_path / "out.partial")


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (["a.b", "a/b"], r"a/b and a\.b would both be a\.b"),
        (["_METADATA"], "_METADATA and a file of Orbax's"),
        (["config/json"], r"config/json and a file beside the weights .* config\.json"),
        (["chats"], "chats and a file beside the weights would both be chats"),
        (["..", "w", "a/./b"], r"rename them [^\n]*\n  '\.\.'\n  'a/\./b'$"),
        (["a\u200bb"], r"rename them [^\n]*\n  'a\\u200bb'$"),
        (["é" * 128, "e" * 255], "at most 255 bytes; rename [^\n]*\n  é{128}$"),
    ],
)
def test_leaves_whose_folders_would_be_one_or_none_are_refused(tmp_path, paths, words):
    of = {path: jax.ShapeDtypeStruct((3,), np.float32) for path in paths}
    output, beside = str(tmp_path / "out"), ("config.json", "chats/one.jinja")
    with (
        pytest.raises(UserError, match=words),
        checkpoints.create(output, "orbax", of, beside=beside),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_a_replaced_checkpoint_takes_no_one_elses_folders(tmp_path):
    for name in ("c.old", "c.new"):
        storage.write_bytes(tmp_path / name / "thesis.txt", b"years of work")
    for value in (1.0, 2.0):
        checkpoints.save(tmp_path / "c", {"a": np.full(2, value)})
    assert (tmp_path / "c.old" / "thesis.txt").exists()
    assert (tmp_path / "c.new" / "thesis.txt").exists()
    np.testing.assert_array_equal(checkpoints.restore(tmp_path / "c")["a"], [2.0, 2.0])
