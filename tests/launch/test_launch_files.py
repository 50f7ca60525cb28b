"""The launch files that need no cloud, and what can be checked of the others.

Slurm is not here: `srun` and `scontrol` are stand-ins that set Slurm's variables, start
real processes on this machine, and write down what they were asked.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file
from together import ROOT

SRUN = f"""#!{sys.executable}
import os, subprocess, sys
command = [a for a in sys.argv[1:] if not a.startswith("--label")]
command = command[next(i for i, a in enumerate(command) if not a.startswith("-")):]
count = int(os.environ["SLURM_NTASKS"])
started = [
    subprocess.Popen(command, env=os.environ | {{
        "SLURM_STEP_NUM_TASKS": str(count), "SLURM_STEP_NODELIST": "localhost",
        "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}})
    for i in range(count)
]
sys.exit(max(process.wait() for process in started))
"""
ARRAY = {"ID": "2", "MAX": "3", "COUNT": "4"}
SCONTROL = '#!/bin/sh\necho "$@" >> "$CALLS"\n'


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def merge(tmp_path):
    """A merge's command, and the weights it must give."""
    rng = np.random.default_rng(0)
    models = {}
    for name in ("base", "one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        models[name] = {"w": rng.normal(size=(40, 50)).astype(np.float32)}
        save_file(models[name], folder / "model.safetensors")
    config = ROOT / "configs" / "merge" / "average.py"
    command = [sys.executable, "-m", "merging", "merge", "--config", str(config)]
    command += [f"--config.experts={tmp_path / 'one'},{tmp_path / 'two'}"]
    command += [f"--config.output={tmp_path / 'out'}"]
    # One rounding, of the sum, in any program: halves are exact.
    return command, (models["one"]["w"] + models["two"]["w"]) / 2


def run(command, **extra):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""} | extra
    return subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True
    )


@pytest.fixture
def slurm(tmp_path):
    """Variables of a Slurm job of two tasks, with the stand-ins on PATH."""
    programs = tmp_path / "bin"
    executable(programs / "srun", SRUN)
    executable(programs / "scontrol", SCONTROL)
    with socket.socket() as free:  # JAX makes the port from the job's number
        free.bind(("localhost", 0))
        job = free.getsockname()[1]
    return {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "SLURM_JOB_ID": str(job),
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
    }


def test_local_processes_merge_together(launch, tmp_path, merge):
    command, expected = merge
    ran = run(
        ["bash", launch / "local.sh", "--logs", tmp_path / "logs", "--", *command]
    )
    assert ran.returncode == 0, ran.stderr
    assert "Merged:" in ran.stdout
    assert (tmp_path / "logs" / "process.1.log").exists()
    merged = load_file(tmp_path / "out" / "model.safetensors")["w"]
    np.testing.assert_array_equal(merged, expected)


def test_a_preempted_program_is_started_again_and_a_mistake_is_not(launch, tmp_path):
    count = tmp_path / "count"
    # Process 0 alone decides how it ends, so that nothing depends on who is faster.
    script = (
        f"[ $MERGING_PROCESS = 0 ] || exit 0; echo x >> {count};"
        f" [ $(wc -l < {count}) -gt 1 ] || exit"
    )
    local = ["bash", launch / "local.sh", "--logs", tmp_path / "logs", "--", "sh", "-c"]
    ran = run([*local, f"{script} 75"])
    assert ran.returncode == 0, ran.stderr
    assert count.read_text() == "x\nx\n"
    count.unlink()
    ran = run([*local, f"{script} 2"])
    assert ran.returncode == 2
    assert count.read_text() == "x\n"


def test_a_slurm_step_merges_with_the_processes_that_slurm_tells(
    launch, tmp_path, merge, slurm
):
    command, expected = merge
    ran = run(["bash", launch / "slurm.sbatch", *command], **slurm)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("Merged:") == 1
    merged = load_file(tmp_path / "out" / "model.safetensors")["w"]
    np.testing.assert_array_equal(merged, expected)


def test_a_preempted_slurm_job_is_requeued_until_it_gives_up(launch, tmp_path, slurm):
    preempted = [
        "bash",
        launch / "slurm.sbatch",
        "--restarts",
        "3",
        "sh",
        "-c",
        "exit 75",
    ]
    ran = run(preempted, **slurm)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "calls").read_text() == f"requeue {slurm['SLURM_JOB_ID']}\n"
    ran = run(preempted, **slurm, SLURM_RESTART_COUNT="3")
    assert ran.returncode == 75 and "giving up" in ran.stderr


def test_array_elements_are_shards_and_one_process_gets_all_gpus(launch, slurm):
    array = {f"SLURM_ARRAY_TASK_{name}": value for name, value in ARRAY.items()}
    array |= {"SLURM_GPUS_ON_NODE": "4", "SLURM_NTASKS_PER_NODE": "1"}
    sweep = ["bash", launch / "slurm.sbatch", "--dry_run", "merging", "sweep"]
    ran = run(sweep, **slurm | array)
    assert "JAX_LOCAL_DEVICE_IDS=0,1,2,3" in ran.stdout
    assert "'--shard' '2/4'" in ran.stdout
    ran = run(sweep, **slurm | {"SLURM_GPUS_ON_NODE": "4"})
    assert ran.returncode == 2 and "cannot share 4 GPUs" in ran.stderr


def shown():
    """Yield each command of a script in launch/README.md, and its output there."""
    text = (ROOT / "launch" / "README.md").read_text().replace("\\\n    ", "")
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        if command.startswith("launch/"):
            yield command, output.split("\n\n")[0].split("```")[0].strip()


@pytest.mark.parametrize(("command", "output"), shown())
def test_dry_runs_are_what_the_readme_shows(command, output, slurm):
    array = "# in an array" in command
    told = {"SLURM_JOB_ID": "1", "SLURM_NTASKS_PER_NODE": "2"}
    if array:
        told |= {f"SLURM_ARRAY_TASK_{k}": v for k, v in ARRAY.items()}
    ran = run(["bash", "-c", f"cd {ROOT} && bash {command}"], **slurm | told)
    assert ran.stdout.strip() == output
    assert len(output.splitlines()) >= 1


def test_scripts_pass_shellcheck(launch):
    program = shutil.which("shellcheck", path=f"{sys.prefix}/bin:{os.environ['PATH']}")
    scripts = [launch / name for name in ("local.sh", "tpu_vm.sh", "slurm.sbatch")]
    assert program, "shellcheck comes with the extra `test`"
    ran = run([program, *scripts])
    assert ran.returncode == 0, ran.stdout


def test_jobsets_name_their_pods_restarts_and_exit_codes(launch):
    sets = list(yaml.safe_load_all((launch / "jobset.yaml").read_text()))
    sets = [one for one in sets if one and one["kind"] == "JobSet"]
    assert {one["metadata"]["labels"]["accelerator"] for one in sets} == {"tpu", "gpu"}
    for one in sets:
        assert one["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
        assert one["spec"]["failurePolicy"]["maxRestarts"] > 0
        for job in one["spec"]["replicatedJobs"]:
            spec = job["template"]["spec"]
            assert spec["parallelism"] == spec["completions"]
            rules = spec["podFailurePolicy"]["rules"]
            assert any(rule["onExitCodes"]["values"] == [2] for rule in rules)
            pod = spec["template"]["spec"]
            assert pod["terminationGracePeriodSeconds"] > 60
