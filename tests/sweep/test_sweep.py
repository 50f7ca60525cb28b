"""A sweep is done once: whatever happens to it, the same rows come out."""

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import together

from merging import checkpoints, methods
from merging.cli.main import main
from merging.methods import registry
from merging.runtime import config as configs
from merging.runtime import results
from merging.runtime import workdir as workdirs
from merging.runtime.errors import Preempted, UserError
from merging.sweep import open_store, status, steps, work
from merging.sweep import sweep as run
from merging.sweep.reading import read
from merging.sweep.steps import Grid, part, with_needs
from merging.sweep.store import Broken, Store

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "configs" / "scaling_curves" / "smoke.py"
# Eight steps: two of data, a base, two experts, a multitask model, two merges; of the
# 23 datasets seven.
SMALL = {
    "data.categories": "sentiment,paraphrase,closed_book_qa,word_sense_disambiguation",
    "bases": "pt",
    "methods": "average,ties",
    "experts_merged": "2",
    "pretraining.steps": "20",
    "expert.steps": "10",
    "multitask.steps": "20",
    "multitask.validate_every": "10",
    "workers": "2",
}


def arguments(workdir: Path, **changes: str) -> list[str]:
    chosen = {**SMALL, **changes}
    overrides = [f"--config.{key}={value}" for key, value in chosen.items()]
    start = ["sweep", "--config", str(SMOKE), "--workdir", str(workdir)]
    return [*start, *overrides]


def command(workdir: Path, **changes: str) -> list[str]:
    return [sys.executable, "-m", "merging", *arguments(workdir, **changes)]


def sweep(workdir: Path, **changes: str) -> subprocess.CompletedProcess:
    """Run a sweep on one device and thread: with more, sums are cut up otherwise."""
    return subprocess.run(
        command(workdir, **changes),
        cwd=ROOT,
        env=together.environment(1, PJRT_NPROC="1"),
        capture_output=True,
        text=True,
        timeout=300,
    )


def rows(workdir: Path) -> list[dict]:
    """Return the rows without the two fields that say when they were made."""
    lines = (workdir / "results.jsonl").read_text().splitlines()
    made = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if k != "wall_seconds"} for row in made]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("sweep") / "run"
    done = sweep(workdir)
    assert done.returncode == 0, done.stderr
    return workdir


def test_every_model_is_scored_on_every_dataset_and_reported(finished):
    read_rows = results.read(finished)
    merges = [r for r in read_rows if r.K == 2]
    assert {r.method for r in merges} == {"average", "ties"}
    assert len(merges) == 2 * 7
    assert {r.method for r in read_rows} >= {"base", "multitask", "multitask_early"}
    page = (finished / "report" / "index.html").read_text("utf-8")
    made_with = page.partition("<dt>Run with, ")[2].partition("</dd>")[0]
    assert "jax 0." in made_with and "python 3." in made_with


def test_every_training_keeps_its_losses_and_logs_them(finished):
    trained = 0
    for path in (finished / "steps").glob("*/*/output.json"):
        output = json.loads(path.read_text())
        if "loss" in output:
            lines = (path.parent / "losses.jsonl").read_text().splitlines()
            losses = [line for line in map(json.loads, lines) if "loss" in line]
            assert len(losses) == output["steps"]
            assert list((path.parent / "tensorboard").glob("events*"))
            trained += 1
    assert trained >= 4  # the base, experts, the multitask model


def test_merges_know_their_experts_and_their_scale(finished):
    ties = [r for r in results.read(finished) if r.method == "ties"]
    assert all(r.parameters["scale"] in (0.5, 1.0) for r in ties)
    assert all(r.parameters["scale_at_edge"] is True for r in ties)
    for row in ties:
        assert row.parameters["tried_scales"] == [0.5, 1.0]
        scores = row.parameters["tried_scores"]
        best = row.parameters["tried_scales"][scores.index(max(scores))]
        assert best == row.parameters["scale"]
    merged = [r for r in ties if r.merged]
    assert len(merged) == 4 and {r.category for r in merged} == set(ties[0].subset)
    assert all(r.value_of_expert is not None for r in merged)


@pytest.mark.parametrize(
    ("folder", "method"), [("checkpoint", "multitask"), ("best", "multitask_early")]
)
def test_evaluate_opens_what_was_trained_and_finds_its_rows(
    finished, tmp_path, folder, method
):
    data = json.loads((finished / "config.json").read_text())["config"]["data"]
    (checkpoint,) = finished.glob(f"steps/multitask/*/{folder}")
    flags = {
        "checkpoint": checkpoint,
        "suite.world_seed": data["world_seed"],
        "suite.test_examples": data["test_examples"],
        "datasets": "imdb,hotpot_qa,wic",  # of each category one
        "bootstrap.resamples": 10,
    }
    config = str(ROOT / "configs" / "evaluate" / "miniworld.py")
    evaluate = ["evaluate", "--config", config, "--workdir", str(tmp_path / "w")]
    overrides = [f"--config.{key}={value}" for key, value in flags.items()]
    assert main([*evaluate, *overrides]) == 0
    own = [r for r in results.read(finished) if r.method == method]
    found = {r.dataset: r.value for r in results.read(tmp_path / "w")}
    assert len(found) == 3 and sum(found.values()) > 0
    assert found.items() <= {r.dataset: r.value for r in own}.items()


def test_a_finished_sweep_does_nothing_and_says_so(finished, capsys):
    before = {p: p.stat().st_mtime_ns for p in finished.glob("steps/*/*/*")}
    table = rows(finished)
    assert main(arguments(finished)) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in finished.glob("steps/*/*/*")} == before
    assert rows(finished) == table


@pytest.mark.long
def test_a_killed_sweep_has_one_driver_and_goes_on_to_the_same_rows(
    finished, tmp_path, capsys
):
    workdir = tmp_path / "killed"
    # What reads the suite takes longest, and is tested with the rest of it.
    shutil.copytree(finished / "data", workdir / "data")
    shutil.copy(finished / "config.json", workdir)
    process = subprocess.Popen(
        command(workdir),
        cwd=ROOT,
        env=together.environment(1),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for_steps(workdir, 1)
    assert main(arguments(workdir)) == 2
    said = capsys.readouterr().err
    assert f"process {process.pid} on {socket.gethostname()}" in said
    assert "works in" in said
    assert f"Process {process.pid} on" in status(workdir)
    wait_for_steps(workdir, 3)
    os.kill(process.pid, signal.SIGKILL)  # the parent alone: the workers must follow
    process.wait()
    kept = {p: p.stat().st_mtime_ns for p in workdir.glob("steps/*/*/output.json")}
    assert len(kept) >= 3 and not (workdir / "results.jsonl").exists()
    time.sleep(1)
    assert _survivors(process.pid) == []
    assert "Nobody works on it" in status(workdir)
    again = sweep(workdir, workers="1")
    assert again.returncode == 0, again.stderr
    after = {p: p.stat().st_mtime_ns for p in workdir.glob("steps/*/*/output.json")}
    assert kept.items() <= after.items()
    assert rows(workdir) == rows(finished)
    assert "All is done." in status(workdir)


def test_a_pool_of_processes_is_driven_by_one(tmp_path, monkeypatch, capsys):
    for name, value in {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}.items():
        monkeypatch.setenv(name, value)
    assert main(arguments(tmp_path / "nowhere", runner="local")) == 2
    assert "process 1 of 2" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()


def test_status_names_what_was_begun_and_what_failed_and_why(tmp_path):
    store, _ = open_store(configs.load(str(SMOKE), SMALL), tmp_path)
    grid = Grid(settings(**SMALL))
    base, expert = grid.base("1x", "pt"), grid.expert("1x", "pt", "sentiment", 0)
    store.partial(expert)
    store.fail(base, "training diverged at step 7")
    said = status(tmp_path)
    assert "failed  pretrain/1x/seed0  training diverged at step 7" in said
    counts = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line}
    assert counts["step"] == ["done", "begun", "failed", "waiting", "all"]
    assert counts["pretrain"] == ["0", "0", "1", "0", "1"]
    store.publish(base, {"test": {}})
    assert store.failure(base) is None
    assert "failed  pretrain" not in status(tmp_path)


def test_status_of_what_is_no_sweep_or_lies_elsewhere_says_so(tmp_path):
    workdirs.claim(tmp_path / "train", {"hyperparameters": {}}, "abc", "training")
    with pytest.raises(UserError, match="holds no sweep"):
        status(tmp_path / "train")
    config = configs.load(str(SMOKE), SMALL).to_dict() | {"method_files": ["mine.py"]}
    workdirs.claim(tmp_path / "run", config, "abc", "sweep")
    with pytest.raises(UserError, match="mine.py(.|\n)*where the sweep was started"):
        status(tmp_path / "run")


def wait_for_steps(workdir: Path, count: int) -> None:
    deadline = time.monotonic() + 200
    while len(list(workdir.glob("steps/*/*"))) < count and time.monotonic() < deadline:
        time.sleep(0.05)


def _survivors(session: int) -> list[str]:
    listed = subprocess.run(
        ["ps", "-o", "stat=,args=", "-s", str(session)], capture_output=True, text=True
    )
    alive = [line for line in listed.stdout.splitlines() if not line.startswith("Z")]
    # Python's own helper, which ends when its pipe closes.
    return [line for line in alive if "resource_tracker" not in line]


@pytest.mark.long
def test_a_damaged_checkpoint_is_made_again_inline_to_the_same_rows(finished):
    table = rows(finished)
    base = next(finished.glob("steps/pretrain/*/checkpoint"))
    files = [p for p in base.rglob("*") if p.is_file() and p.stat().st_size > 4096]
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for merge in finished.glob("steps/merge/*"):
        (merge / "output.json").unlink()
    # A record cut short, as a power loss leaves it.
    next(finished.glob("steps/expert/*/output.json")).write_text('{"key":')
    again = sweep(finished, runner="inline")
    assert again.returncode == 0, again.stderr
    assert "inline, 1 at a time" in again.stderr
    assert "warning: pretrain/1x" in again.stderr and "again" in again.stderr
    assert "warning: expert/1x" in again.stderr
    for one, other in zip(rows(finished), table, strict=True):
        assert one == other


def test_another_config_may_not_use_the_workdir(finished, capsys):
    assert main(arguments(finished, **{"expert.steps": "11"})) == 2
    said = capsys.readouterr().err
    assert "another config" in said and "--workdir" in said


def test_a_folder_that_is_no_run_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("mine")
    assert main(arguments(tmp_path)) == 2
    assert "holds no sweep" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def settings(**changes: str):
    return read(configs.load(str(SMOKE), changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": "tise,average"}, "ties"),
        ({"sizes": "9x"}, "8x"),
        ({"bases": "pt,itt"}, "base"),
        ({"suite": "miniwrld"}, "miniworld"),
        ({"experts_merged": "2,9"}, "9"),
        ({"experts_merged": "3", "methods": "slerp"}, "slerp merges 2 .* holds 3"),
        ({"methods": ""}, "methods"),
        ({"densities.ties": "1.5"}, "density"),
        ({"seeds": "0"}, "seeds"),
        ({"batch_size": "-1"}, "batch_size"),
        ({"expert.steps": "0"}, "expert"),
    ],
)
def test_a_sweep_that_cannot_run_is_refused_before_any_work(change, message):
    with pytest.raises(UserError, match=message):
        settings(**change)


def test_a_method_of_two_models_merges_pairs_alone_and_has_multiples_of_its_scale():
    experiment = settings(methods="slerp,ties,dare", experts_merged="2,3")
    assert [experiment.counts(m) for m in experiment.methods] == [(2,), (2, 3), (2, 3)]
    experiment = dataclasses.replace(experiment, scale_multiples=(0.5, 2.0))
    usual = methods.parameters("dare")["scale"]
    assert experiment.candidates("dare") == [
        {"scale": 0.5 * usual},
        {"scale": 2.0 * usual},
    ]
    # Those of a grid of its own, and those without a λ.
    assert {c["scale"] for c in experiment.candidates("ties")} == {0.5, 1.0}
    assert experiment.candidates("slerp") == [{}]
    every = configs.load("scaling_curves/methods", {"scale_multiples": "0.5,-1"})
    with pytest.raises(UserError, match="scale_multiples holds -1.0, no positive"):
        read(every)


def test_keys_change_with_what_a_step_depends_on_and_with_nothing_else():
    grid, other = Grid(settings()), Grid(settings(**{"expert.steps": "21"}))
    again = Grid(settings(workers="1", methods="average"))
    arguments = ("1x", "it", "average", 2, 0)
    assert grid.merge(*arguments).key == again.merge(*arguments).key
    assert grid.merge(*arguments).key != other.merge(*arguments).key
    assert grid.base("1x", "it").key == other.base("1x", "it").key


def test_keys_change_with_defaults_and_versions_of_the_code_they_depend_on(monkeypatch):
    arguments = ("1x", "it", "ties", 2, 0)
    before = Grid(settings())
    merge, expert = (
        before.merge(*arguments).key,
        before.expert("1x", "it", "sentiment", 0).key,
    )

    def changed(*attributes):
        with monkeypatch.context() as patch:
            patch.setattr(*attributes)
            grid = Grid(settings())
            ours = (
                grid.merge(*arguments).key,
                grid.expert("1x", "it", "sentiment", 0).key,
            )
            return [new != old for new, old in zip(ours, (merge, expert), strict=True)]

    for room, ours in (("merge", [True, False]), ("training", [True, True])):
        raised = {room: steps.VERSIONS[room] + 1}
        assert changed(steps, "VERSIONS", steps.VERSIONS | raised) == ours
    entry = registry._ENTRIES["ties"]
    other = entry._replace(parameters=entry.parameters | {"density": 0.3})
    entries = registry._ENTRIES | {"ties": other}
    assert changed(registry, "_ENTRIES", entries) == [True, False]


AVERAGE = ("1x", "it", "average", 2, 0)
OWN = """
from merging import methods

@methods.register()
def own(scale: float = 1.0):
    return methods.compose("own", combiner=methods.combiners.mean(), scale=scale)
"""


def test_a_method_of_ones_own_is_keyed_by_its_file_and_no_other_method_is(
    tmp_path, monkeypatch
):
    def keys(text: str) -> list[str]:
        (tmp_path / "own.py").write_text(text)
        with monkeypatch.context() as patch:  # as a process of its own would have it
            patch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
            chosen = {"method_files": str(tmp_path / "own.py"), "methods": "own"}
            grid = Grid(settings(**chosen))
            names = ("average", "own")
            return [grid.merge("1x", "it", name, 2, 0).key for name in names]

    before, edited = keys(OWN), keys(OWN + "# edited")
    assert before[0] == edited[0] == Grid(settings()).merge(*AVERAGE).key
    assert before[1] != edited[1]


def test_a_default_that_is_a_function_gives_one_key_in_every_process(monkeypatch):
    entry = registry._ENTRIES["average"]

    def key(default) -> str:
        other = entry._replace(parameters=entry.parameters | {"combine": default})
        monkeypatch.setitem(registry._ENTRIES, "average", other)
        return Grid(settings()).merge(*AVERAGE).key

    # Two functions of one file, or one in two processes: their addresses differ.
    assert key(lambda: 0) == key(lambda: 0)
    assert key(0.5) != key(0.25)


def test_steps_come_after_what_they_need():
    ordered = with_needs(Grid(settings()).targets())
    place = {step.key: at for at, step in enumerate(ordered)}
    assert len(place) == len(ordered)
    assert all(place[n.key] < place[s.key] for s in ordered for n in s.needs)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100])
def test_parts_of_a_grid_are_a_partition(count):
    targets = Grid(settings()).targets()
    parts = [part(targets, index, count) for index in range(count)]
    assert [s.name for p in parts for s in p] == [s.name for s in targets]


def test_an_empty_part_of_a_grid_does_nothing(tmp_path, capsys):
    config = configs.load(str(SMOKE), SMALL)
    targets = Grid(settings(**SMALL)).targets()
    empty = next(i for i in range(50) if not part(targets, i, 50))
    assert run(config, tmp_path / "run", (empty, 50)) == (tmp_path / "run").absolute()
    assert "nothing to do" in capsys.readouterr().out
    # `merging report --workdir DIR/shard_*` names it with the others.
    assert results.read(tmp_path / "run") == []


def test_status_of_a_part_is_of_its_steps_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("merging.sweep.finish", publish_all)
    grid = Grid(settings(**SMALL))
    run(configs.load(str(SMOKE), SMALL), tmp_path, (0, 3))
    done = with_needs(part(grid.targets(), 0, 3))
    assert 0 < len(done) < len(with_needs(grid.targets()))
    said = status(tmp_path)
    assert "All is done." in said
    assert f"all {len(done)}" in " ".join(said.split())


def publish_all(targets, experiment, store, label) -> None:
    for step in with_needs(targets):
        names = [d.name for d in experiment.suite.datasets]
        record = {
            "test": dict.fromkeys(names, 0.5),
            "examples": dict.fromkeys(names, 8),
        }
        store.publish(step, record | {"wall_seconds": 1.0, "git_revision": "unknown"})


def test_rows_have_the_right_answers_likelihood_where_steps_do(tmp_path, monkeypatch):
    def publish(targets, experiment, store, label):
        monkeypatch.setattr(store, "publish", with_targets(store.publish))
        publish_all(targets, experiment, store, label)

    def with_targets(original):
        def published(step, record):
            if step.kind == "merge":  # the others are of before there were any
                record = record | {"targets": {"imdb": [-8.0, 4]}}
            original(step, record)

        return published

    monkeypatch.setattr("merging.sweep.finish", publish)
    run(configs.load(str(SMOKE), SMALL), tmp_path)
    found = results.read(tmp_path)
    merged = [row for row in found if row.method not in results.BASELINES]
    assert merged and {
        (row.dataset, row.target_log_p, row.target_tokens, row.cross_entropy)
        for row in merged
        if row.dataset in ("imdb", "mrpc")
    } == {("imdb", -8.0, 4, 2.0), ("mrpc", None, None, None)}
    assert {row.target_log_p for row in found if row not in merged} == {None}


def test_a_config_that_took_the_workdir_before_the_lock_is_not_mixed_with(
    tmp_path, monkeypatch
):
    @contextlib.contextmanager
    def late(folder):
        other = configs.load(str(SMOKE), SMALL | {"expert.steps": "11"})
        (folder / "config.json").unlink()
        open_store(other, folder)
        yield

    monkeypatch.setattr(workdirs, "only_driver", late)
    monkeypatch.setattr("merging.sweep.finish", publish_all)
    with pytest.raises(UserError, match="another config"):
        run(configs.load(str(SMOKE), SMALL), tmp_path)
    assert not (tmp_path / "steps").exists()


def test_a_workdir_goes_on_under_another_grid_and_keeps_what_is_finished(
    tmp_path, monkeypatch, capsys
):
    """More seeds, another K or λ: what neither is trained nor merged again."""
    published = []

    def publish(targets, experiment, store, label):
        missing = [step for step in with_needs(targets) if not store.finished(step)]
        published.append({step.name for step in missing})
        publish_all(missing, experiment, store, label)

    monkeypatch.setattr("merging.sweep.finish", publish)
    run(configs.load(str(SMOKE), SMALL), tmp_path)
    first = results.read(tmp_path)
    more = SMALL | {"experts_merged": "2,3", "seeds": "2", "methods": "average"}
    run(configs.load(str(SMOKE), more), tmp_path)
    said = capsys.readouterr().err
    assert "experts_merged [2, 3] (was [2])" in said and "seeds 2 (was 1)" in said
    assert "merge/1x/pt/average/K3/seed0" in published[1]
    assert not published[1] & published[0]
    rows = results.read(tmp_path)
    cells = {(row.method, row.K, row.seed) for row in rows}
    merges = {cell for cell in cells if cell[0] not in results.BASELINES}
    assert merges == {("average", k, seed) for k in (2, 3) for seed in (0, 1)}
    # Back again: nothing of it was lost.
    run(configs.load(str(SMOKE), SMALL), tmp_path)
    assert published[2] == set() and results.read(tmp_path) == first
    # Other values of λ are other merges of the same experts.
    run(configs.load(str(SMOKE), SMALL | {"scales.ties": "0.5"}), tmp_path)
    assert published[3] == {"merge/1x/pt/ties/K2/seed0"}


def test_a_grid_changes_only_where_nothing_else_does_and_nobody_works(tmp_path):
    store, _ = open_store(configs.load(str(SMOKE), SMALL), tmp_path)
    held = (tmp_path / "config.json").read_bytes()
    other = configs.load(str(SMOKE), SMALL | {"seeds": "2"})
    with workdirs.only_driver(tmp_path), pytest.raises(UserError, match="works in"):
        run(other, tmp_path)
    trained = configs.load(str(SMOKE), SMALL | {"seeds": "2", "expert.steps": "11"})
    with pytest.raises(UserError, match="another config"):
        run(trained, tmp_path)
    assert (tmp_path / "config.json").read_bytes() == held


def test_why_a_sweep_ended_is_told_even_if_its_rows_cannot_be_kept(
    tmp_path, monkeypatch, capsys
):
    def stop(*_):
        (tmp_path / "results.jsonl").mkdir()
        raise Preempted("stopped by SIGTERM")

    monkeypatch.setattr("merging.sweep.finish", stop)
    with pytest.raises(Preempted, match="SIGTERM"):
        run(configs.load(str(SMOKE), SMALL), tmp_path)
    assert "results.jsonl is not up to date" in capsys.readouterr().err


def test_a_report_is_never_left_beside_rows_that_it_does_not_show(
    tmp_path, monkeypatch
):
    def draw(rows, folder, configs):
        folder.mkdir(exist_ok=True)
        (folder / "index.html").write_text(str({row.value for row in rows}))

    def kill(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("merging.sweep.report", draw)
    monkeypatch.setattr("merging.sweep.summary_text", lambda rows: "")
    monkeypatch.setattr("merging.sweep.finish", publish_all)
    chosen = configs.load(str(SMOKE), SMALL)
    page = run(chosen, tmp_path)
    assert page.read_text() == "{0.5}"
    monkeypatch.setattr("merging.sweep.finish", lambda *_: None)
    for path in tmp_path.glob("steps/*/*/output.json"):
        path.write_text(path.read_text().replace("0.5", "0.25"))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", kill)  # after or before the rows are written
        with pytest.raises(KeyboardInterrupt):
            run(chosen, tmp_path)
    assert run(chosen, tmp_path).read_text() == "{0.25}"


def test_a_config_half_written_by_a_killed_run_locks_no_one_out(tmp_path):
    (tmp_path / "config.json.123.tmp").write_text("{")
    workdirs.claim(tmp_path, {}, "abc", "sweep")
    with pytest.raises(UserError, match="another config"):
        workdirs.claim(tmp_path, {}, "def", "sweep")


def test_subsets_grow_by_adding_experts():
    chosen = settings()
    for seed in range(3):
        sets = [set(chosen.subset(seed, k)) for k in (2, 4, 6, 8)]
        assert [len(s) for s in sets] == [2, 4, 6, 8]
        assert all(a < b for a, b in zip(sets, sets[1:], strict=False))


def test_what_the_system_will_not_let_us_read_is_not_thrown_away(tmp_path, monkeypatch):
    grid = Grid(settings())
    store, step = Store(tmp_path), grid.base("1x", "pt")
    store.publish(step, {"test": {}})

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(PermissionError):
        store.output(step)
    monkeypatch.setattr(checkpoints, "restore", refuse)
    with pytest.raises(PermissionError):
        work.restore(settings(), store, step)


def test_an_output_of_another_step_is_not_believed(tmp_path):
    grid = Grid(settings())
    store, step = Store(tmp_path), grid.base("1x", "pt")
    store.publish(step, {"test": {}})
    assert store.output(step)["test"] == {}
    (store.path(step) / "output.json").write_text('{"key": "other", "test": {}}')
    with pytest.raises(Broken, match="not this step's"):
        store.output(step)
