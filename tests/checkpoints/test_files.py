"""Files of a checkpoint: links, kinds of files, how many are open, who owns them."""

import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import together
from safetensors.numpy import save_file

from merging import UserError, checkpoints
from merging.checkpoints import files
from merging.checkpoints.descriptors import Descriptors
from merging.checkpoints.safetensors import INDEX, SINGLE


def opened(pattern):
    """Return how many of our descriptors lead to such a path."""
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:  # the listing's own
            continue
    return sum(pattern in link for link in links)


def keep_open(monkeypatch, most):
    few = Descriptors(most, files._open_regular)
    monkeypatch.setattr(files, "_OPEN", few)


def model(folder, **leaves):
    folder.mkdir(parents=True)
    save_file(leaves or {"w": np.arange(6.0)}, folder / SINGLE)
    return folder


def sharded(folder, count):
    """Save a model of so many shards, with a tensor each."""
    folder.mkdir(parents=True)
    where = {f"w{i}": f"model-{i}.safetensors" for i in range(count)}
    for i, (name, file) in enumerate(where.items()):
        save_file({name: np.full(3, i, np.float32)}, folder / file)
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))
    return folder


def read(source, name="w", size=6, dtype=np.float64):
    out = np.empty(size, dtype)
    source.read_into(name, 0, out)
    return out.tolist()


def test_of_many_shards_few_are_open_at_a_time(tmp_path, monkeypatch):
    keep_open(monkeypatch, 4)
    places = [sharded(tmp_path / f"m{k}", 10) for k in range(3)]
    sources = [checkpoints.open_checkpoint(place) for place in places]
    for i in range(10):
        for source in sources:
            assert read(source, f"w{i}", 3, np.float32) == [i] * 3
        assert opened(str(tmp_path)) <= 4
    del sources, source
    assert opened(str(tmp_path)) == 0


def test_threads_share_files_that_are_closed_under_them(tmp_path, monkeypatch):
    keep_open(monkeypatch, 2)
    source = checkpoints.open_checkpoint(sharded(tmp_path / "m", 8))
    wrong = []

    def work(seed):
        order = np.random.default_rng(seed).integers(0, 8, 200)
        wrong.extend(i for i in order if read(source, f"w{i}", 3, "f4") != [i] * 3)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert opened(str(tmp_path)) <= 2


def test_a_file_that_was_replaced_is_not_read_as_the_one_that_was_opened(
    tmp_path, monkeypatch
):
    keep_open(monkeypatch, 1)
    one = checkpoints.open_checkpoint(model(tmp_path / "one"))
    other = checkpoints.open_checkpoint(model(tmp_path / "other"))
    assert read(one) == read(other) == [0, 1, 2, 3, 4, 5]
    (tmp_path / "one" / SINGLE).unlink()
    save_file({"w": np.arange(6.0) + 1}, tmp_path / "one" / SINGLE)
    with pytest.raises(UserError, match="one/model.safetensors was changed while"):
        read(one)


READS = """
import sys
import numpy as np
from merging import checkpoints
source = checkpoints.open_checkpoint(sys.argv[1])
source.read_into("w", 0, np.empty(6))
"""


def test_a_program_that_ends_with_a_file_open_says_nothing(tmp_path):
    model(tmp_path / "m")
    ended = subprocess.run(
        [sys.executable, "-c", READS, str(tmp_path / "m")],
        env=together.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert (ended.stdout, ended.stderr) == ("", "")


@pytest.mark.parametrize("name", [SINGLE, INDEX])
def test_a_link_to_outside_is_not_followed(tmp_path, name):
    outside = sharded(tmp_path / "outside", 2) if name == INDEX else None
    outside = outside or model(tmp_path / "outside")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / name).symlink_to(outside / name)
    with pytest.raises(UserError, match=f"m holds a link .* not read.*\n *'{name}'"):
        checkpoints.open_checkpoint(tmp_path / "m")


def test_a_file_that_is_named_itself_may_be_a_link(tmp_path):
    outside = model(tmp_path / "outside")
    (tmp_path / "mine.safetensors").symlink_to(outside / SINGLE)
    source = checkpoints.open_checkpoint(tmp_path / "mine.safetensors")
    assert read(source) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", [SINGLE, INDEX, "model-1.safetensors"])
@pytest.mark.parametrize("kind", ["FIFO", "folder"])
def test_what_is_no_file_is_refused_and_never_opened(tmp_path, name, kind):
    place = sharded(tmp_path / "m", 2)
    if name == SINGLE:
        (place / INDEX).unlink()
    else:
        (place / name).unlink()
    if kind == "FIFO":
        os.mkfifo(place / name)
    else:
        (place / name).mkdir()
    with pytest.raises(UserError, match=f"{name} is a {kind}, not a file"):
        checkpoints.open_checkpoint(place)


def test_a_device_is_refused(tmp_path):
    (tmp_path / "x.safetensors").symlink_to("/dev/null")
    with pytest.raises(UserError, match="x.safetensors is a device, not a file"):
        checkpoints.open_checkpoint(tmp_path / "x.safetensors")


def test_a_folder_may_be_called_like_a_file(tmp_path):
    source = checkpoints.open_checkpoint(model(tmp_path / "x.safetensors"))
    assert read(source) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", ["a\0b", "a\ud800", "a\x1b[1m", "a\\b", "", "a\nb"])
def test_a_name_that_no_file_can_have_is_refused_by_name(tmp_path, name):
    place = sharded(tmp_path / "m", 2)
    where = {"w0": "model-0.safetensors", "w1": name}
    (place / INDEX).write_text(json.dumps({"weight_map": where}))
    with pytest.raises(UserError, match="names a file outside its folder") as caught:
        checkpoints.open_checkpoint(place)
    assert repr(name) in str(caught.value)


def test_an_owner_that_has_no_name_does_not_matter(tmp_path):
    place = model(tmp_path / "m")
    try:
        os.chown(place / SINGLE, 54321, 54321)
    except PermissionError:
        pytest.skip("giving a file away is not permitted here")
    assert read(checkpoints.open_checkpoint(place)) == [0, 1, 2, 3, 4, 5]


def test_auxiliary_files_that_are_left_out_are_warned_of(tmp_path):
    place = model(tmp_path / "m")
    os.mkfifo(place / "tokenizer.json")
    (place / "config.json").write_text("{}")
    (tmp_path / "secret.json").write_text("{}")
    (place / "tokenizer_config.json").symlink_to(tmp_path / "secret.json")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "x.jinja").write_text("x")
    (place / "additional_chat_templates").symlink_to(tmp_path / "secrets")
    with pytest.warns(UserWarning) as told:
        found = checkpoints.read_auxiliary_files(str(place))
    assert found == {"config.json": b"{}"}
    assert "tokenizer.json is no file" in str(told[0].message)
    assert "tokenizer_config.json is a link to outside" in str(told[0].message)
    assert "additional_chat_templates/x.jinja is a link" in str(told[0].message)


def test_a_file_brings_what_lies_beside_it(tmp_path):
    place = model(tmp_path / "m")
    (place / "config.json").write_text("{}")
    assert set(checkpoints.auxiliary_files(place / SINGLE)) == {"config.json"}
