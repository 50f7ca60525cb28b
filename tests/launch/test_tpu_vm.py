"""tpu_vm.sh against a fake gcloud: what fails, it repeats or reports, and cleans up."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FAKE = Path(__file__).with_name("fake_gcloud.py")


class Cloud:
    """One fake cloud and what was done to it."""

    def __init__(self, folder: Path, script: Path):
        self.folder, self.script = folder, script
        (folder / "bin").mkdir()
        gcloud = folder / "bin" / "gcloud"
        gcloud.write_text(
            # Without a look at site-packages: it is started two hundred times.
            FAKE.read_text().replace("/usr/bin/env python3", f"{sys.executable} -IS")
        )
        gcloud.chmod(0o755)
        git = folder / "bin" / "git"  # packing the tree takes longer than all the rest
        git.write_text("#!/bin/sh\nprintf '\\037\\213'\n")
        git.chmod(0o755)

    def run(self, *flags: str, **scenario: list[str]) -> subprocess.CompletedProcess:
        (self.folder / "scenario.json").write_text(json.dumps(scenario))
        (self.folder / "calls").unlink(missing_ok=True)
        command = [str(self.script), "--name", "ties", "--zone", "z1"]
        command += ["--accelerator_type", "v6e-16", "--poll", "0", "--tries", "3"]
        return subprocess.run(
            [*command, *flags, "--", "merging", "merge", "--config", "a b.py"],
            env=os.environ
            | {
                "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
                "FAKE": str(self.folder),
                "XDG_STATE_HOME": str(self.folder / "state"),
            },
            capture_output=True,
            text=True,
            timeout=60,
        )

    @property
    def calls(self) -> list[list[str]]:
        path = self.folder / "calls"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines()]

    @property
    def verbs(self) -> list[str]:
        """The calls' verbs in order, repeats of looking left out."""
        found = [c[3] if c[2] == "queued-resources" else "versions" for c in self.calls]
        return [v for v in found if v != "describe"]

    @property
    def left(self) -> bool:
        """Whether a resource is still there, or believed to be."""
        marks = [p for p in self.folder.glob("state/**/*") if p.is_file()]
        assert bool(marks) == (self.folder / "resource").exists() or not marks
        return (self.folder / "resource").exists() or bool(marks)


@pytest.fixture
def cloud(tmp_path, launch):
    return Cloud(tmp_path, launch / "tpu_vm.sh")


ONE_RUN = ["ssh", "scp", "ssh", "ssh"]  # do they answer, copy, install, run


def test_it_asks_waits_installs_runs_and_tears_down(cloud):
    (cloud.folder / "bin" / "git").unlink()  # the tree itself is packed
    states = ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    ran = cloud.run("--spot", states=states, run=["done\n[worker status 0]"])
    assert ran.returncode == 0, ran.stderr
    assert cloud.verbs == ["versions", "create", *ONE_RUN, "delete"]
    create = next(c for c in cloud.calls if c[3] == "create")
    assert create[4:] == [
        "ties",
        "--zone=z1",
        "--quiet",
        "--accelerator-type=v6e-16",
        "--runtime-version=v2-alpha-tpuv6e",
        "--node-id=ties",
        "--spot",
        "--async",
    ]
    delete = next(c for c in cloud.calls if c[3] == "delete")
    assert delete[4:] == ["ties", "--zone=z1", "--quiet", "--force"]
    run = [c for c in cloud.calls if c[3] == "ssh"][-1]
    assert {"--node=all", "--worker=all"} <= set(run)
    assert "'merging' 'merge' '--config' 'a b.py'" in run[-1]
    assert "waiting: PROVISIONING" in ran.stderr and "done" in ran.stdout
    assert not cloud.left


def test_workers_get_an_interpreter_that_is_new_enough(cloud):
    cloud.run()
    *_, install, run = [c[-1] for c in cloud.calls if c[3] == "ssh"]
    # The image's own Python, 3.10 on Ubuntu 22.04, only fetches uv.
    assert "python3 -m pip install --quiet --target .uv uv &&" in install
    assert "uv venv --quiet --python 3.12 .venv &&" in install
    assert install.count("python3 -m") == 1
    assert "PATH=$PWD/.venv/bin:$PATH" in run


def test_several_slices_are_nodes_of_one_resource(cloud):
    cloud.run("--reserved", "--slices", "2", "--service_account", "robot")
    create = next(c for c in cloud.calls if c[3] == "create")
    assert {"--node-count=2", "--node-prefix=ties", "--reserved"} <= set(create)
    assert "--service-account=robot" in create
    assert not any(flag.startswith("--node-id") for flag in create)


def test_a_refusal_for_quota_stops_at_once_and_says_so(cloud):
    ran = cloud.run(create=["Quota limit 'TPUV6EPerProject' has been exceeded."] * 9)
    assert ran.returncode == 1
    assert cloud.verbs == ["versions", "create"]
    assert "Quota limit" in ran.stderr and "nothing was created" in ran.stderr
    assert not cloud.left


def test_an_answer_that_was_lost_leaves_nothing_behind(cloud):
    ran = cloud.run(create=["lost"])
    assert ran.returncode == 0, ran.stderr
    assert cloud.verbs == ["versions", "create", *ONE_RUN, "delete"]
    assert not cloud.left


def test_a_call_that_fails_for_a_while_is_made_again(cloud):
    ran = cloud.run(create=["internal error", "ok"], scp=["broken pipe", "ok"])
    assert ran.returncode == 0, ran.stderr
    assert cloud.verbs.count("create") == 2 and cloud.verbs.count("scp") == 2
    assert not cloud.left


def test_what_is_taken_away_while_waiting_is_asked_for_again(cloud):
    states = ["WAITING_FOR_RESOURCES", "SUSPENDED", "ACTIVE"]
    ran = cloud.run(states=states)
    assert ran.returncode == 0, ran.stderr
    assert cloud.verbs == ["versions", "create", "delete", "create", *ONE_RUN, "delete"]
    assert "it was taken away; going on (1 of" in ran.stderr
    assert not cloud.left


def test_a_request_that_failed_is_shown_and_deleted(cloud):
    ran = cloud.run(states=["WAITING_FOR_RESOURCES", "FAILED"])
    assert ran.returncode == 1 and "gave up on it" in ran.stderr
    assert cloud.verbs == ["versions", "create", "delete"]
    assert not cloud.left


def test_young_workers_that_refuse_ssh_are_asked_again(cloud):
    ran = cloud.run(ssh=["Connection refused", "worker 3: Connection refused", "ok"])
    assert ran.returncode == 0, ran.stderr
    assert cloud.verbs == ["versions", "create", "ssh", "ssh", *ONE_RUN, "delete"]


def test_when_half_of_the_workers_never_come_up_it_stops_and_cleans_up(cloud):
    ran = cloud.run(ssh=["workers 2, 3: Connection refused"] * 9)
    assert ran.returncode == 1
    assert cloud.verbs == ["versions", "create", "ssh", "ssh", "ssh", "delete"]
    assert "some workers cannot be set up" in ran.stderr
    assert "workers 2, 3" in ran.stderr
    assert not cloud.left


@pytest.mark.parametrize("end", ["[worker status 75]", "ERROR connection lost"])
def test_a_preempted_or_lost_run_goes_on(cloud, end):
    ran = cloud.run(run=[end, "[worker status 0]"])
    assert ran.returncode == 0, ran.stderr
    assert cloud.verbs == ["versions", "create", *ONE_RUN, *ONE_RUN, "delete"]
    assert "going on (1 of" in ran.stderr


def test_a_tpu_lost_in_the_run_is_asked_for_again(cloud):
    states = ["ACTIVE", "SUSPENDED", "ACTIVE"]
    ran = cloud.run(states=states, run=["ERROR connection lost"])
    assert ran.returncode == 0, ran.stderr
    once = ["create", *ONE_RUN, "delete"]
    assert cloud.verbs == ["versions", *once, *once]
    assert not cloud.left


def test_a_mistake_is_not_repeated(cloud):
    said = "merging: error: no such method\n[worker status 2]\n[worker status 75]"
    ran = cloud.run(run=[said])
    assert ran.returncode == 2 and "no such method" in ran.stdout
    assert cloud.verbs == ["versions", "create", *ONE_RUN, "delete"]
    assert not cloud.left


def test_it_gives_up_after_so_many_restarts_with_the_status_of_preemption(cloud):
    ran = cloud.run("--restarts", "2", run=["[worker status 75]"] * 9)
    assert ran.returncode == 75
    assert cloud.verbs == ["versions", "create", *ONE_RUN * 3, "delete"]
    assert not cloud.left


def test_what_it_did_not_create_it_neither_uses_nor_deletes(cloud):
    (cloud.folder / "resource").touch()
    ran = cloud.run()
    assert ran.returncode == 2 and "did not create" in ran.stderr
    assert cloud.verbs == []
    assert (cloud.folder / "resource").exists()


def test_a_later_run_finds_what_a_killed_one_left_and_cleans_it_up(cloud):
    kept = cloud.run("--keep")
    assert kept.returncode == 0 and cloud.left
    assert "queued-resources delete ties --zone=z1" in kept.stderr
    ran = cloud.run()
    assert ran.returncode == 0, ran.stderr
    assert cloud.verbs == ["versions", *ONE_RUN, "delete"]
    assert not cloud.left


def test_a_deletion_that_fails_is_tried_again_and_then_shouted(cloud):
    assert cloud.run(delete=["internal error", "ok"]).returncode == 0
    assert not cloud.left
    ran = cloud.run(delete=["internal error"] * 9)
    assert ran.returncode == 1 and cloud.left
    assert "COULD NOT DELETE ties" in ran.stderr
    assert "queued-resources delete ties --zone=z1 --quiet --force" in ran.stderr


def test_the_runtime_version_is_looked_up_or_asked_for(cloud):
    ran = cloud.run(versions=["v2-alpha-tpuv5\nv2-alpha-tpuv9"])
    assert ran.returncode == 2 and "v2-alpha-tpuv9" in ran.stderr
    assert cloud.verbs == ["versions"]
    ran = cloud.run("--runtime_version", "v2-alpha-tpuv9")
    assert ran.returncode == 0 and "versions" not in cloud.verbs


def test_a_dry_run_calls_nothing_and_shows_the_calls_of_a_real_one(cloud):
    dry = cloud.run("--dry_run", "--spot")
    assert dry.returncode == 0 and cloud.calls == []
    cloud.run("--spot")
    real = [c for c in cloud.calls if c[3] != "describe"]
    # Every line that starts a call; a command to a worker may be printed as $'...'.
    shown = [line for line in dry.stdout.splitlines() if line.startswith("gcloud ")]
    assert [re.split(r"\s+", line)[3:5] for line in shown] == [c[2:4] for c in real]
    folder = Path("SCRATCH/merging.tar.gz")
    assert str(folder) in dry.stdout


@pytest.mark.skipif(not shutil.which("gcloud"), reason="no gcloud here")
@pytest.mark.long
def test_the_real_gcloud_knows_every_flag(cloud, tmp_path):
    """It parses a call before it finds that nobody is logged in."""
    cloud.run(
        "--spot", "--project", "p1", "--service_account", "robot", states=["FAILED"]
    )
    tried = cloud.calls
    cloud.run("--reserved", "--project", "p1", "--slices", "2")
    for call in tried + cloud.calls:
        call = [re.sub(r".*/merging.tar.gz$", "/etc/hostname", word) for word in call]
        ran = subprocess.run(
            ["gcloud", *call],
            env=os.environ | {"CLOUDSDK_CONFIG": str(tmp_path / "nobody")},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "active account" in ran.stderr, ran.stderr
