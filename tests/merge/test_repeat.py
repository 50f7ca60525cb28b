"""A merge that is repeated from its manifest, wherever that is read, and its proof."""

import json
import os
import shutil

import models
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from merging import UserError, checkpoints, methods
from merging.cli import main as command_line
from merging.merge import job, majority, manifest
from merging.merge import streamed as stream
from merging.runtime import storage

# Leaves that a digest looks at some places of only.
large = pytest.mark.parametrize("place", [3_000_000], indirect=True)


@pytest.fixture
def place(tmp_path, monkeypatch, request):
    """A folder with a base and two experts in it, and the working directory."""
    size = getattr(request, "param", 30_000)
    for number, name in enumerate(("base", "e1", "e2")):
        rng = np.random.default_rng(number)
        models.save(tmp_path / name, {"w": rng.normal(size=size).astype(np.float32)})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def merge(output="out", **settings):
    given = {"base": "base", "experts": ["e1", "e2"], "method": "ties()"} | settings
    return stream.merge_checkpoints(output=output, **given)


def described(name):
    source = checkpoints.open_checkpoint(name)
    return manifest.describe_inputs({name: source}, "out")


def weights(folder):
    return load_file(folder / "model.safetensors")["w"].tobytes()


def written(path):
    """Return what tells one writing from another; reading moves the access time."""
    found = os.stat(path)
    return found.st_ino, found.st_mtime_ns, found.st_size


def test_a_manifest_is_repeated_from_any_folder(place, tmp_path, monkeypatch):
    merge()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = stream.repeat("../out/manifest.json", "again")
    assert weights(again) == weights(place / "out")
    # What is made elsewhere records its inputs as they are seen from there.
    assert stream.repeat("again/manifest.json", "third").is_dir()


def test_models_and_merges_may_be_moved_together(place, tmp_path_factory):
    merge()
    there = tmp_path_factory.mktemp("there") / "moved"
    shutil.move(place, there)
    again = stream.repeat(there / "out" / "manifest.json", str(there / "again"))
    assert weights(again) == weights(there / "out")
    place.mkdir()


def test_models_that_are_elsewhere_can_be_named(place, capsys):
    merge()
    (place / "e2").rename(place / "moved")
    (place / "base").rename(place / "start")
    command = ["merge", "--manifest", "out/manifest.json", "--output", "again"]
    assert command_line.main(command) == 2
    assert "no checkpoint at" in capsys.readouterr().err
    assert command_line.main([*command, "--inputs", "base=start,nobody=moved"]) == 2
    assert "unknown input 'nobody'" in capsys.readouterr().err
    assert command_line.main([*command, "--inputs", "base=start,e2"]) == 2
    assert "--inputs e2: write NAME=PATH" in capsys.readouterr().err
    assert command_line.main([*command, "--inputs", "base=start,e2=moved"]) == 0
    assert weights(place / "again") == weights(place / "out")


@large
def test_a_change_between_the_places_of_the_digest_is_seen(place):
    merge()
    path = place / "e1" / "model.safetensors"
    leaves = load_file(path)
    leaves["w"][1_030_000:1_180_000] += 1
    before = described("e1")
    save_file(leaves, path, metadata={"format": "pt"})
    assert before == described("e1")  # as the digests of places have it
    with pytest.raises(UserError, match="1 of 1 leaves are not .* records .w.") as told:
        stream.repeat("out/manifest.json", "again")
    assert "again.partial holds the result" in str(told.value)
    assert not (place / "again").exists()


def change(path, *, when=0):
    """Change what no digest looks at; its time of change is the old one, and more."""
    before = os.stat(path)
    with open(path, "r+b") as file:
        file.seek(1_100_000 * 4)
        file.write(bytes(4000))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + when))


@large
@pytest.mark.parametrize("output", ["out", "gs://store/written_"])
@pytest.mark.parametrize("format", checkpoints.FORMATS)
@pytest.mark.parametrize("when", [-(10**9), 10**9])
def test_inputs_of_another_time_are_not_what_an_output_was_made_of(
    place, object_store, output, format, when
):
    output += format + str(when)
    merge(output, format=format)
    change(place / "e1" / "model.safetensors", when=when)
    names, held = sorted(os.listdir(place)), object_store.names()
    with pytest.raises(UserError, match="merged before .*e1/model.safetensors got"):
        merge(output, format=format)
    assert sorted(os.listdir(place)) == names and object_store.names() == held
    manifest_of = storage.place(output, "output") / "manifest.json"
    with pytest.raises(UserError, match="1 of 1 leaves are not"):
        stream.repeat(manifest_of, "again")


@large
def test_copies_and_permissions_are_no_change(place, capsys):
    merge()
    os.chmod(place / "base" / "model.safetensors", 0o640)
    os.link(place / "e1" / "model.safetensors", place / "snapshot")
    shutil.copytree(place / "e2", place / "copy")  # keeps the times
    shutil.rmtree(place / "e2")
    os.rename(place / "copy", place / "e2")
    before = written(place / "out" / "manifest.json")
    merge()
    assert written(place / "out" / "manifest.json") == before


@large
def test_only_doing_it_again_tells_of_a_change_whose_time_was_set_back(place):
    merge()
    change(place / "e1" / "model.safetensors")
    merge()
    with pytest.raises(UserError, match="1 of 1 leaves are not"):
        stream.repeat("out/manifest.json", "again")


def test_what_is_known_byte_by_byte_may_have_been_touched(place):
    merge()
    for name in ("base", "e1"):
        os.chmod(place / name / "model.safetensors", 0o640)
        os.utime(place / name / "model.safetensors")
    before = written(place / "out")
    merge()
    assert written(place / "out") == before


@large
def test_an_input_that_is_written_to_meanwhile_publishes_nothing(place, monkeypatch):
    original = job._merge

    def merge_and_change(*arguments):
        found = original(*arguments)
        change(place / "e2" / "model.safetensors", when=1)
        return found

    monkeypatch.setattr(job, "_merge", merge_and_change)
    with pytest.raises(UserError, match="changed while they were read: .*e2/model"):
        merge()
    assert not (place / "out").exists()


def add_one(path):
    leaves = load_file(path)
    leaves["w"][1_030_000:1_180_000] += 1
    save_file(leaves, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda patch: patch.setattr(manifest, "versions", lambda: {"jax": "0.1"}),
            "versions",
        ),
        (
            lambda patch: patch.setattr(job.jax, "default_backend", lambda: "tpu"),
            "platform",
        ),
    ],
    ids=["versions", "platform"],
)
def test_a_stopped_merge_goes_on_only_with_what_its_bits_depend_on(
    place, monkeypatch, change, words
):
    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(majority, "settle", stop)
        with pytest.raises(KeyboardInterrupt):
            merge()
    with monkeypatch.context() as patched:
        change(patched)
        with pytest.raises(UserError, match=f"of another merge: {words} differ"):
            merge()
    merge()
    assert stream.verify("out") == []


@large
def test_a_stopped_merge_begins_anew_when_an_input_was_written_to(place, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(majority, "settle", stop)
        with pytest.raises(KeyboardInterrupt):
            merge()
    before = described("e1")
    add_one(place / "e1" / "model.safetensors")
    assert before == described("e1")
    with pytest.warns(UserWarning, match="out.partial: .* it begins anew"):
        merge()
    merge("fresh")
    assert weights(place / "out") == weights(place / "fresh")


def test_the_manifest_says_where_everything_was(place):
    merge(auxiliary_files="./e2", experts={"a": "e1", "b": str(place / "e2")})
    found = json.loads((place / "out" / "manifest.json").read_text())
    assert found["settings"]["base"] == "../base"
    assert found["settings"]["experts"] == {"a": "../e1", "b": str(place / "e2")}
    assert found["settings"]["auxiliary_files"] == "../e2"
    assert [model["uri"] for model in found["inputs"]] == [
        "../base",
        "../e1",
        str(place / "e2"),
    ]
    assert stream.repeat("out/manifest.json", "again").is_dir()


def test_a_method_of_ones_own_is_found_again(place):
    (place / "mine.py").write_text(
        "from merging import methods\n"
        "@methods.register('mine_again')\n"
        "def mine_again(scale=0.5):\n"
        "    return methods.task_arithmetic(scale)\n"
    )
    merge(method="", method_file="mine.py")
    os.chdir(place / "e1")
    again = stream.repeat(
        place / "out" / "manifest.json",
        str(place / "again"),
        method_file="../mine.py",
    )
    assert weights(again) == weights(place / "out")
    assert methods.get("mine_again") is not None
