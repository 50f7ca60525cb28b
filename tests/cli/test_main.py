import errno
import json
import os
import shlex
import subprocess
import sys
import types
from pathlib import Path

import jax
import pytest

import merging
from merging.cli import main as command_line
from merging.runtime.errors import UserError

CONFIG = """
from ml_collections import ConfigDict

def get_config(name="small"):
    return ConfigDict({"name": name, "sizes": ("1x",), "train": {"steps": 5}})
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "example.py"
    path.write_text(CONFIG)
    return str(path)


@pytest.fixture
def sweep(monkeypatch):
    """Stand in for merging.sweep, and record its calls."""
    fake = types.ModuleType("merging.sweep")
    fake.calls = []
    fake.fail = None

    def run(config, workdir, shard):
        fake.calls.append((config, workdir, shard))
        if fake.fail:
            raise fake.fail

    fake.sweep = run
    monkeypatch.setitem(sys.modules, "merging.sweep", fake)
    # Not setattr: what it would put back afterwards is the stand-in itself.
    monkeypatch.setitem(vars(merging), "sweep", fake)
    return fake


@pytest.fixture
def run(capsys):
    def run(*argv):
        status = command_line.main([str(a) for a in argv])
        return status, *capsys.readouterr()

    return run


def test_sweep_gets_the_overridden_config_the_workdir_and_the_shard(
    run, sweep, config, tmp_path
):
    overrides = ["--config.sizes=1x,8x", "--config.train.steps", "7"]
    workdir = ["--workdir", tmp_path / "w", "--shard", "1/3"]
    status, _, _ = run("sweep", "--config", f"{config}:big", *overrides, *workdir)
    assert status == 0
    [(given, where, shard)] = sweep.calls
    assert given.to_dict() == {
        "name": "big",
        "sizes": ("1x", "8x"),
        "train": {"steps": 7},
    }
    assert given.is_locked
    assert (where, shard) == (tmp_path / "w" / "shard_1_of_3", (1, 3))


def test_without_a_workdir_the_config_names_it(run, sweep, config):
    run("sweep", "--config", config)
    run("sweep", f"--config={config}:big")
    assert [call[1] for call in sweep.calls] == [
        Path("runs/example"),
        Path("runs/example-big"),
    ]
    assert sweep.calls[0][2] == (0, 1)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("swep", "unknown command 'swep': did you mean sweep"),
        ("sweep", "required: --config"),
        ("sweep --config CONFIG --wrokdir x", "'--wrokdir': did you mean --workdir"),
        ("sweep --config CONFIG --config.nam=x", "did you mean name?"),
        ("sweep --config CONFIG --config.name", "--config.name needs a value"),
        ("sweep --config CONFIG --config.name --shard 0/1", "needs a value"),
        ("sweep --config CONFIG --config.train.steps=many", "a whole number"),
        ("sweep --config CONFIG --shard 3/3", "the first is 0/4"),
        ("sweep --config CONFIG --shard one", "the first is 0/4"),
        ("sweep --config CONFIG.gone", "a config is a Python file"),
        ("report", "required: --workdir"),
        ("report --workdir x --config.name=y", "reads no config"),
        ("methods --jsn", "did you mean --json"),
        (
            "sweep --config CONFIG --config.sizes=1x --config.sizes 8x",
            "--config.sizes is given twice, '1x' and '8x'",
        ),
        ("sweep --config CONFIG --workdir a --workdir=b", "--workdir: give an option"),
    ],
)
def test_a_users_mistake_is_one_message_and_status_2(
    run, sweep, config, arguments, expected
):
    status, out, err = run(*shlex.split(arguments.replace("CONFIG", config)))
    assert (status, out) == (2, "")
    assert err.startswith("merging: error: ") and expected in err
    assert "Traceback" not in err
    assert sweep.calls == []


def test_a_user_error_from_inside_is_shown_as_it_is(run, sweep, config):
    sweep.fail = UserError("K = 9 of 8 experts")
    status, _, err = run("sweep", "--config", config)
    assert (status, err) == (2, "merging: error: K = 9 of 8 experts\n")


def test_a_fault_of_ours_shows_its_traceback_and_status_1(run, sweep, config):
    sweep.fail = ZeroDivisionError("oops")
    status, _, err = run("sweep", "--config", config)
    assert status == 1
    assert "Traceback" in err and "ZeroDivisionError: oops" in err


def test_stopping_a_sweep_says_how_to_continue(run, sweep, config):
    sweep.fail = KeyboardInterrupt()
    status, _, err = run("sweep", "--config", config, "--workdir", "my runs")
    assert status == 130
    assert "What was finished is kept" in err
    assert f"merging sweep --config {config} --workdir 'my runs'" in err


def full_disk_in_words():
    # As storage libraries raise it: no errno, the reason only in the text.
    return ValueError("RESOURCE_EXHAUSTED: [source: x] No space left on device")


def full_disk_behind_another_error():
    error = RuntimeError("saving failed")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device", "/w/x")
    return error


def full_disk_in_a_worker():
    error = RuntimeError("saving failed")
    error.__cause__ = Exception("Traceback: line 1\nOSError: No space left on device\n")
    return error


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device", "/w/x"),
        full_disk_in_words(),
        full_disk_behind_another_error(),
        full_disk_in_a_worker(),
    ],
)
def test_a_full_disk_is_named_with_the_way_on(run, sweep, config, failure):
    sweep.fail = failure
    status, _, err = run("sweep", "--config", config)
    assert status == 2
    assert "the disk is full" in err and "Finished work is kept" in err
    assert f"merging sweep --config {config}" in err
    assert "Traceback" not in err


def test_a_forbidden_directory_is_named(run, sweep, config):
    sweep.fail = PermissionError(errno.EACCES, "Permission denied", "/locked")
    status, _, err = run("sweep", "--config", config)
    assert status == 2 and "'/locked'" in err and "Traceback" not in err


@pytest.mark.parametrize("number", ["ENAMETOOLONG", "ELOOP", "EISDIR", "ENOTDIR"])
def test_a_path_that_the_system_refuses_is_named(run, sweep, config, number):
    code = getattr(errno, number)
    sweep.fail = OSError(code, os.strerror(code), "/somewhere/ours")
    status, _, err = run("sweep", "--config", config)
    assert status == 2 and "Traceback" not in err
    assert os.strerror(code) in err and "'/somewhere/ours'" in err


def test_too_many_open_files_are_told_with_the_remedy(run, sweep, config):
    sweep.fail = OSError(errno.EMFILE, os.strerror(errno.EMFILE), "/somewhere/ours")
    status, _, err = run("sweep", "--config", config)
    assert status == 2 and "ulimit -n" in err and "Traceback" not in err


def test_report_joins_the_rows_of_its_workdirs(run, monkeypatch, tmp_path):
    calls = []
    results = types.ModuleType("merging.runtime.results")
    results.read = lambda paths: calls.append(paths) or ["row"] * 3
    report = types.ModuleType("merging.report")
    report.report = lambda *given: calls.append(given) or given[1] / "i.html"
    for fake in (results, report):
        monkeypatch.setitem(sys.modules, fake.__name__, fake)
        monkeypatch.setattr(fake.__name__, fake, raising=False)
    one, two = tmp_path / "one", tmp_path / "two"
    status, out, _ = run("report", "--workdir", one, two)
    assert status == 0
    assert calls == [[one, two], (["row"] * 3, one / "report", {}, [], None)]
    assert out == f"Report of 3 rows: {one / 'report' / 'i.html'}\n"
    # What a workdir that holds a run of ours says of it goes to the page.
    record = {"config_hash": "abc", "config": {"sizes": ["1x"]}}
    record["versions"] = {"jax": "0.10"}
    two.mkdir()
    (two / "config.json").write_text(json.dumps(record))
    out = tmp_path / "joined"
    run("report", "--workdir", one, two, "--out", out, "--gate", 2)
    assert calls[-1] == (
        ["row"] * 3,
        out,
        {"abc": ({"sizes": ["1x"]}, {"jax": "0.10"})},
        [],
        2.0,
    )


def test_the_versions_that_run_are_told(run):
    status, out, _ = run("--version")
    said = dict(line.split() for line in out.splitlines())
    assert status == 0 and said["jax"] == jax.__version__
    assert said["merging"] and said["git"] and said["python"]


def test_methods_are_listed_with_definition_paper_cost_and_evidence(run):
    status, out, _ = run("methods")
    assert status == 0
    for words in (
        "average(weights=None)\n    θ = Σ wᵢθᵢ / Σ wᵢ; needs no base\n"
        "    Wortsman et al. 2022, arXiv 2203.05482\n    one pass, without a base\n",
        "Yadav et al. 2023, arXiv 2306.01708\n    2 passes\n    no reliable gain on",
        "one pass, or 2 passes over leaves larger than a block, of two experts",
        "one pass; one matrix of each model in memory",
        "of one expert, without a base",
    ):
        assert words in out
    order = ["\nkarcher(", "\nties(", "\nlinear@mergekit("]
    assert sorted(order, key=out.index) == order


def test_methods_are_listed_for_programs(run):
    _, out, _ = run("methods", "--json")
    found = {record.pop("name"): record for record in json.loads(out)}
    assert found["nearswap"] == {
        "parameters": {"t": 0.0001, "scale": 1.0},
        "definition": "θ = θ₀ + λ min(t / |Δ|, 1) Δ: what is near comes all the way, "
        "the rest by t",
        "paper": "alchemonaut 2024, QuartetAnemoi; mergekit 0.1.5, nearswap",
        "experts": 1,
        "needs_base": True,
        "cost": "one pass",
        "passes": 1,
        "everywhere": False,
        "memory": "",
        "statistics": "",
        "evidence": "",
    }


@pytest.mark.parametrize("command", ["sweep", "report", "status", "methods"])
def test_the_help_of_a_command_shows_examples(run, command):
    status, out, _ = run(command, "--help")
    assert status == 0
    assert out.startswith(f"usage: merging {command}")
    examples = out[out.index("examples:") :]
    assert f"  merging {command}" in examples


def test_the_help_beside_a_config_lists_its_values(run, sweep, config):
    status, out, _ = run("sweep", "--config", f"{config}:big", "--help")
    assert status == 0
    values = out[out.index(f"values of {config}:big:\n") :].splitlines()[1:]
    assert [line.split(maxsplit=1) for line in values] == [
        ["--config.name", "'big'"],
        ["--config.sizes", "('1x',)"],
        ["--config.train.steps", "5"],
    ]
    assert run("sweep", "-h", "--config=gone.py")[0] == 2
    assert sweep.calls == []


@pytest.mark.parametrize(
    ("command", "names", "values"),
    [
        ("merge", "merge/average", "--config.memory_budget"),
        ("train", "train/expert", "--config.hyperparameters.steps"),
        ("evaluate", "evaluate/t0", "--config.suite.name"),
        ("convert", "convert/to_orbax", "--config.input"),
        ("plan", "plan/palm_64b", "--config.scoring.batch"),
        ("sweep", "scaling_curves/smoke", "--config.experts_merged"),
    ],
)
def test_the_help_lists_the_configs_by_name_and_their_keys(run, command, names, values):
    status, out, _ = run(command, "--help")
    assert status == 0
    listed = out[out.index("configs that come with the package:") :]
    assert f"\n  {names} " in listed and f"\n  {values} " in listed


@pytest.mark.parametrize("option", ["--dry_run", "--dry-run"])
def test_options_are_spelt_with_dashes_as_well(run, monkeypatch, config, option):
    from merging.cli import COMMANDS

    seen = []
    command = COMMANDS["merge"]._replace(run=lambda found: seen.append(found) or 0)
    monkeypatch.setitem(COMMANDS, "merge", command)
    assert run("merge", "--config", config, option, "--config.name=a-b")[0] == 0
    assert seen[0].dry_run and seen[0].overrides == {"name": "a-b"}


def test_the_help_lists_every_command(run):
    status, out, _ = run("--help")
    assert status == 0
    assert all(name in out for name in ("sweep", "report", "status", "methods"))


def test_no_command_is_a_mistake_answered_with_the_help(run):
    status, out, err = run()
    assert (status, out) == (2, "") and "usage: merging" in err


def python(*arguments, **settings):
    command = [sys.executable, "-m", "merging", *arguments]
    return subprocess.run(command, capture_output=True, text=True, **settings)


def test_the_program_ends_with_the_status_of_main(config):
    ran = python("sweep", "--config", config, "--config.nmae=x")
    assert ran.returncode == 2
    assert ran.stderr.startswith("merging: error: unknown config key 'nmae'")


def test_the_list_of_methods_can_be_piped_into_a_reader_that_stops():
    ran = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m merging methods | true; echo $PIPESTATUS"],
        capture_output=True,
        text=True,
    )
    assert (ran.stdout, ran.stderr) == ("0\n", "")


def test_every_method_of_the_library_is_listed():
    ran = python("methods", "--json")
    assert ran.returncode == 0, ran.stderr
    records = {record["name"]: record for record in json.loads(ran.stdout)}
    mission = {"average", "task_arithmetic", "ties", "dare", "dare_ties", "rht"}
    assert mission <= set(records)
    assert records["ties"]["parameters"]["density"] == 0.2
    assert records["rht"]["parameters"]["density"] == 0.7
    assert all(r["paper"] and r["definition"] for r in records.values())


def test_the_readme_and_the_ci_run_the_same_two_commands():
    root = Path(__file__).parents[2]
    readme = (root / "README.md").read_text()
    run = (root / ".ci" / "run").read_text()
    assert "pip install '.[test]' && pytest" in readme
    assert "pip install '.[test]'" in run and "stage pytest pytest\n" in run
    tiny = "merging sweep --config configs/scaling_curves/tiny.py --workdir curves"
    assert f"pip install . && {tiny}" in readme
    assert "merging sweep --config scaling_curves/smoke --workdir smoke" in run


ENDING = """
import atexit, sys
from merging.cli.main import command

class Imported:
    def __del__(self):
        print("taken apart")

kept, sys.argv = Imported(), ["merging", *sys.argv[1:]]
atexit.register(print, "ended")
command()
"""


@pytest.mark.parametrize(("command", "status"), [("methods", 0), ("nonsense", 2)])
def test_a_command_ends_with_all_that_it_said_and_takes_nothing_apart(command, status):
    program = [sys.executable, "-c", ENDING, command]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == status
    assert done.stdout.endswith("ended\n") and "taken apart" not in done.stdout
    assert bool(done.stderr) == (status == 2)
    alone = [sys.executable, "-m", "merging", command]
    again = subprocess.run(alone, capture_output=True, text=True)
    assert again.returncode == status
    assert (again.stdout + "ended\n", again.stderr) == (done.stdout, done.stderr)


def test_a_command_whose_output_is_closed_ends_quietly():
    command = f"{shlex.quote(sys.executable)} -m merging methods >&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
