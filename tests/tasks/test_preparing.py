"""Fetching suite t0's data, with a network that is made up and without one."""

import json
import socket
import sys
import threading
import time
import types

import invented
import pytest

from merging.cli import main
from merging.runtime.errors import UserError
from merging.tasks.t0 import preparing, sources, tables


def nobody(hosts):
    return set()


def everybody(hosts):
    return set(hosts)


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the package `datasets`; give it `records[repository, part]`."""
    module = types.ModuleType("datasets")
    module.__spec__ = types.SimpleNamespace()
    module.records, module.asked = {}, []

    def load_dataset(path, split, name=None, revision=None):
        module.asked.append((path, name, split, revision))
        found = module.records[path, split]
        if isinstance(found, Exception) and revision is None:
            raise found
        return module.converted if isinstance(found, Exception) else found

    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


def test_without_a_network_every_way_to_a_dataset_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    states = list(preparing.prepare(tmp_path / "new", reachable=nobody))
    assert [s.dataset for s in states] == list(tables.names())
    assert not any(s.ready for s in states)
    told = {s.dataset: s.about for s in states}
    assert "no answer from dl.fbaipublicfiles.com" in told["copa"]
    assert "TFDS: super_glue/copa" in told["copa"]
    assert f"put train.jsonl, validation.jsonl into {tmp_path}/new/copa" in told["copa"]
    assert "the package `datasets` is not installed" in told["dream"]
    assert "pip install datasets" in told["dream"]
    assert "from https://dataset.org/dream/" in told["dream"]
    assert "from files that you fetch yourself" in told["xsum"]


def test_what_is_there_is_counted_and_compared(tmp_path):
    rows = invented.records("copa", 409)
    rows = {"train": rows[:400], "validation": rows[400:]}
    invented.write_files(tmp_path, "copa", rows)
    asked = []
    (state,) = preparing.prepare(tmp_path, ["copa"], reachable=asked.append)
    assert state.ready and not asked
    assert state.about.splitlines() == [
        f"{tmp_path}/copa: train 400, validation 9",
        "differs: validation has 100 examples elsewhere",
    ]


def test_files_that_lack_a_part_are_not_mixed_with_a_builders(tmp_path):
    invented.write_files(tmp_path, "copa", {"train": [{}] * 400})
    asked = []
    (state,) = preparing.prepare(tmp_path, ["copa"], reachable=asked.append)
    assert not state.ready and not asked
    assert f"no {tmp_path}/copa/validation.jsonl" in state.about


def test_the_hubs_records_become_files_of_the_fields_that_are_read(tmp_path, hub):
    repository = "UCLNLP/adversarial_qa"
    for part, rows in invented.parts("adversarial_qa").items():
        extra = {"id": "x", "metadata": {"split": part}}
        hub.records[repository, part] = [row | extra for row in rows]
    (state,) = preparing.prepare(tmp_path, ["adversarial_qa"], reachable=everybody)
    assert state.ready and f"train {invented.TRAIN}," in state.about
    assert hub.asked[0] == (repository, "adversarialQA", "train", None)
    line = (tmp_path / "adversarial_qa" / "train.jsonl").read_text().splitlines()[0]
    assert json.loads(line) == dict(tables.entry("adversarial_qa").example)
    entry = tables.entry("adversarial_qa")
    located = sources.locate(entry, tmp_path)
    assert len(list(sources.records(entry, located, "train"))) == 19


def test_a_repository_that_is_a_script_is_read_as_the_hub_converted_it(tmp_path, hub):
    hub.converted = invented.records("hotpot_qa", 9)
    for part in ("train", "validation"):
        script = RuntimeError("Dataset scripts are no longer supported")
        hub.records["hotpotqa/hotpot_qa", part] = script
    (state,) = preparing.prepare(tmp_path, ["hotpot_qa"], reachable=everybody)
    assert state.ready
    assert [asked[3] for asked in hub.asked] == [None, "refs/convert/parquet"] * 2


def test_a_download_that_breaks_off_leaves_no_file_and_the_rest_goes_on(tmp_path, hub):
    def breaks_off():
        yield from invented.records("dream", 3)
        raise OSError("connection reset")

    hub.records["dataset-org/dream", "train"] = breaks_off()
    for part in ("train", "validation"):
        hub.records["hotpotqa/hotpot_qa", part] = invented.records("hotpot_qa", 2)
    broken, whole = preparing.prepare(
        tmp_path, ["dream", "hotpot_qa"], reachable=everybody
    )
    assert (broken.ready, whole.ready) == (False, True)
    assert "download failed (OSError: connection reset)" in broken.about
    assert not (tmp_path / "dream" / "train.jsonl").exists()


def test_two_that_fetch_the_same_file_do_not_write_into_each_others(tmp_path):
    entry, rows = tables.entry("dream"), invented.records("dream", 6)

    def overtaken():
        yield rows[0]
        preparing.write_part(entry, tmp_path, "train", rows[3:5])
        yield rows[1]

    preparing.write_part(entry, tmp_path, "train", overtaken())
    path = tmp_path / "dream" / "train.jsonl"
    found = [json.loads(line)["dialogue"] for line in path.read_text().splitlines()]
    assert found == [row["dialogue"] for row in rows[:2]]
    assert list(path.parent.iterdir()) == [path]


def test_tfds_is_left_alone_unless_all_hosts_of_a_builder_answer(tmp_path, monkeypatch):
    fetched = []

    def download(entry, data_dir):
        fetched.append(entry.name)
        invented.write_files(data_dir, entry.name)

    monkeypatch.setattr(preparing, "_from_tfds", download)
    chosen = ["mrpc", "rte", "winogrande"]
    answered = {"dl.fbaipublicfiles.com"}
    states = list(preparing.prepare(tmp_path, chosen, reachable=lambda _: answered))
    assert [(s.dataset, s.ready) for s in states] == [
        ("mrpc", False),
        ("rte", True),
        ("winogrande", False),
    ]
    assert fetched == ["rte"]
    assert "no answer from firebasestorage.googleapis.com" in states[0].about


def test_silent_hosts_cost_the_patience_once_and_no_more():
    with socket.create_server(("127.0.0.1", 0), backlog=8) as silent:
        port = silent.getsockname()[1]
        hosts = [f"127.0.0.1:{port}"] * 5 + ["127.0.0.1:1"]
        start = time.monotonic()
        assert preparing.answering(hosts, patience=0.5) == set()
        assert time.monotonic() - start < 2


def test_a_look_up_that_hangs_costs_no_more_than_the_patience(monkeypatch):
    hanging = threading.Event()

    def urlopen(request, timeout):
        hanging.wait(20)
        raise OSError

    monkeypatch.setattr(preparing.urllib.request, "urlopen", urlopen)
    start = time.monotonic()
    assert preparing.answering(["a.example", "b.example"], patience=0.1) == set()
    assert time.monotonic() - start < 5
    hanging.set()


def test_a_host_that_answers_with_an_error_answers(monkeypatch):
    def urlopen(request, timeout):
        if "closed" in request.full_url:
            raise preparing.urllib.error.URLError("no route")
        raise preparing.urllib.error.HTTPError(request.full_url, 403, "no", {}, None)

    monkeypatch.setattr(preparing.urllib.request, "urlopen", urlopen)
    assert preparing.answering(["open.example", "closed.example"]) == {"open.example"}


def test_the_command_tells_what_is_missing_by_its_exit_status(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(preparing, "answering", nobody)
    rows = invented.parts("mrpc")
    rows["validation"][0] = rows["train"][0]
    invented.write_files(tmp_path, "mrpc", rows)
    argv = ["tasks", "prepare", "--suite", "t0", "--data_dir", str(tmp_path)]
    assert main.main([*argv, "--only", "mrpc", "--contamination"]) == 0
    out = capsys.readouterr().out
    assert "ready   mrpc" in out and "1 of 1 datasets are ready." in out
    assert "mrpc (test) in the training part of mrpc: 1 examples whole" in out
    assert main.main([*argv, "--only", "mrpc,copa"]) == 1
    out = capsys.readouterr().out
    assert "missing copa" in out and "1 of 2 datasets are ready." in out
    assert main.main([*argv, "--only", "mprc"]) == 2
    assert "did you mean mrpc" in capsys.readouterr().err


def test_files_with_faulty_lines_are_not_ready(tmp_path, capsys):
    rows = invented.parts("copa")
    rows["validation"][1]["label"] = 7
    invented.write_files(tmp_path, "copa", rows)
    argv = ["tasks", "prepare", "--data_dir", str(tmp_path), "--only", "copa"]
    assert main.main([*argv, "--contamination"]) == 1
    out = capsys.readouterr().out
    assert "missing copa" in out and "0 of 1 datasets are ready." in out
    assert f"{tmp_path}/copa/validation.jsonl:2: no choice is the right one" in out
    assert "contamination: not looked for; no dataset is ready." in out
    assert "none" not in out.splitlines()[-1]


def test_examples_of_the_data_are_shown(tmp_path, capsys):
    invented.write_files(tmp_path, "hotpot_qa")
    assert main.main(["tasks", "show", "hotpot_qa", "--data_dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.count("--- hotpot_qa, prompt ") == 3
    assert f"(the first of {tmp_path}/hotpot_qa)" in out and "(copy " in out
    with pytest.raises(UserError, match="copa is not ready: nothing of it in"):
        entry = tables.entry("copa")
        next(sources.records(entry, sources.locate(entry, tmp_path), "train"))
