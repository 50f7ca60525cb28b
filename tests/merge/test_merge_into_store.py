"""Merges into an object store: a local merge's bytes, whatever happens on the way."""

import models
import numpy as np
import pytest

from merging import UserError, checkpoints
from merging.checkpoints import unfinished
from merging.merge import streamed
from merging.runtime import storage
from merging.runtime.objects import ObjectPath

# Several blocks, shards of several pieces, and a negative majority that is applied.
MERGE = {"shard_size": "300kB", "seed": 3}
BUDGETS = {"safetensors": "3MB", "orbax": "7MB"}  # there a chunk is a whole leaf
TIES = "ties(density=1)"


class Cut(Exception):
    """The power went."""


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A base and experts under a negative majority, many of whose votes cancel.

    Only the second leaf leans to it: the blocks of the first, which comes first, are
    merged as if it were positive, in whatever order threads get to them.
    """
    folder = tmp_path_factory.mktemp("family")
    shapes = {"a": (500, 300), "b": (700, 100), "c": (70,), "d": (), "e": (0, 3)}
    base = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    rng = np.random.default_rng(0)
    experts = {}
    for number in range(2):
        moved = {
            n: (x + rng.choice([-1] if n == "b" else [-1, 1, 1], x.shape) / 4)
            for n, x in base.items()
        }
        moved = {n: x.astype("f4") for n, x in moved.items()}
        experts[f"e{number}"] = models.save(folder / f"e{number}", moved)
    return models.save(folder / "base", base), experts


@pytest.fixture(scope="module")
def expected(family, tmp_path_factory):
    """The files of a local merge, by format: {name: content}."""
    found = {}
    for format in ("safetensors", "orbax"):
        output = tmp_path_factory.mktemp("expected") / "out"
        streamed.merge_checkpoints(*family, TIES, output, **settings(format))
        found[format] = contents(output)
    return found


def settings(format):
    return MERGE | {"format": format, "memory_budget": BUDGETS[format]}


def contents(folder):
    files = folder.find() if isinstance(folder, ObjectPath) else folder.rglob("*")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if path.is_file()
    }


def cut_before(monkeypatch, name, times):
    """Have the program end before it writes an object of such a name so often."""
    left = [times]
    for method in ("write_bytes", "compose"):
        whole = getattr(ObjectPath, method)

        def cut(path, given, whole=whole):
            left[0] -= name in str(path)
            if not left[0]:
                raise Cut
            return whole(path, given)

        monkeypatch.setattr(ObjectPath, method, cut)


def test_a_merge_into_a_store_has_the_bytes_of_a_local_one(
    family, object_store, expected
):
    format = "safetensors"
    output = f"gs://store/{format}"
    made = streamed.merge_checkpoints(*family, TIES, output, **settings(format))
    assert contents(made) == expected[format]
    assert not object_store.names(f"{format}.")  # neither lock nor pieces
    assert streamed.verify(output) == []
    asked = len(object_store.asked)
    streamed.merge_checkpoints(*family, TIES, output, **settings(format))
    assert {method for method, _ in object_store.asked[asked:]} == {"GET"}
    changed = made / (
        "a/0.0" if format == "orbax" else "model-00001-of-00002.safetensors"
    )
    content = bytearray(changed.read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)
    assert "its bytes have changed" in streamed.verify(output)[0]


def cut_at_once(*_):
    raise Cut


CUTS = {
    "safetensors": [("/pieces/", 3), ("/blocks.", 3), ("/negative", 1)]
    + [("/settled.", 1), ("-00002-of", 1)],
    "orbax": [("/blocks.", 1), ("/_CHECKPOINT_METADATA", 1)],
}


@pytest.mark.parametrize("format", ["safetensors", "orbax"])
def test_a_merge_that_is_cut_between_objects_goes_on_to_the_same_bytes(
    family, object_store, expected, monkeypatch, format
):
    output = f"gs://store/cut_{format}"
    partial, written, told = f"cut_{format}.partial", {}, 0
    for name, times in CUTS[format]:
        with monkeypatch.context() as cut, pytest.raises(Cut):
            cut_before(cut, name, times)
            streamed.merge_checkpoints(*family, TIES, output, **settings(format))
        with pytest.raises(UserError):
            checkpoints.open_checkpoint(output)
        pieces = object_store.names(f"{partial}/pieces")
        now = {piece: object_store.generation(piece) for piece in pieces}
        if name == "/negative":  # what was finished before was not merged again
            assert len(now.items() & written.items()) >= told > 0
        written, told = now, len(object_store.names(f"{partial}/.merge/blocks."))
    with monkeypatch.context() as cut, pytest.raises(Cut):
        cut.setattr(storage, "remove", cut_at_once)  # when all but the rest is done
        streamed.merge_checkpoints(*family, TIES, output, **settings(format))
    assert object_store.names(f"cut_{format}.")
    made = streamed.merge_checkpoints(*family, TIES, output, **settings(format))
    assert contents(made) == expected[format] and streamed.verify(output) == []
    assert not object_store.names(f"cut_{format}.")


def test_an_output_in_a_store_that_is_anothers_is_refused(family, object_store):
    base, experts = family
    storage.write_bytes("gs://store/taken/notes.txt", b"mine")
    with pytest.raises(
        UserError, match="gs://store/taken exists, and is not what this"
    ):
        streamed.merge_checkpoints(base, experts, TIES, "gs://store/taken")
    other = {"made_by": unfinished._MADE_BY, "files": {"other.safetensors": 1}}
    storage.write_json("gs://store/begun.partial/layout.json", other)
    with pytest.raises(UserError, match="unfinished output of another merge"):
        streamed.merge_checkpoints(base, experts, TIES, "gs://store/begun")
    storage.write_bytes("gs://store/mine.partial/thesis.txt", b"mine")
    for format in checkpoints.FORMATS:
        with pytest.raises(UserError, match="mine.partial exists, and is no output"):
            streamed.merge_checkpoints(
                base, experts, TIES, "gs://store/mine", format=format
            )
    with pytest.raises(UserError, match="lies in the input gs://store/safetensors"):
        inside = "gs://store/safetensors/new"
        streamed.merge_checkpoints("gs://store/safetensors", experts, TIES, inside)
    assert object_store.names("taken") == ["taken/notes.txt"]
    assert object_store.names("mine") == ["mine.partial/thesis.txt"]
