"""Steps on a real Ray cluster of two nodes, one of which is lost."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fake_steps
import pytest
from fake_steps import Fakes, finished, step

from merging.runtime.errors import UserError
from merging.runtime.progress import Progress
from merging.sweep import on_ray, runners
from merging.sweep.store import Store

pytestmark = pytest.mark.long
ray = pytest.importorskip("ray", reason="needs the extra `ray`")


@pytest.fixture(scope="module")
def cluster():
    """A node with two cores; others are added."""
    from ray.cluster_utils import Cluster

    here = [str(Path(fake_steps.__file__).parent), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, here)))
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
        patch.setenv("RAY_ADDRESS", made.address)
        on_ray.connect(Fakes("ray"))  # to the head, before another node is there
        yield made
        ray.shutdown()
        made.shutdown()


def run(steps, folder, **needs) -> None:
    experiment = Fakes("ray", resources={"CPU": 1.0} | needs)
    with Progress(len(steps), "steps") as progress:
        runners.run(steps, experiment, Store(folder), progress)


def test_steps_are_done_in_order_and_a_failed_one_is_named(cluster, tmp_path):
    base = step("base")
    steps = [base, step("after", base), step("mistaken"), step("odd")]
    with pytest.raises(RuntimeError, match="2 steps failed") as error:
        run(steps, tmp_path)
    assert "mistaken: the rate is too high" in str(error.value)
    assert "odd: TwoPartError: an odd error" in str(error.value)
    assert finished(Store(tmp_path)) == {"base", "after"}


def test_a_node_that_is_lost_costs_its_steps_only(cluster, tmp_path):
    far = cluster.add_node(num_cpus=2, resources={"far": 1})
    # Nodes are started and killed by the main thread, which may handle signals.
    with ThreadPoolExecutor(1) as other:
        running = other.submit(run, [step("lost"), step("one")], tmp_path, far=1.0)
        deadline = time.monotonic() + 120
        while not (tmp_path / "lost.met").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        cluster.remove_node(far, allow_graceful=False)
        cluster.add_node(num_cpus=2, resources={"far": 1})
        running.result()
    assert finished(Store(tmp_path)) == {"lost", "one"}


def test_a_step_that_kills_every_worker_ends(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(on_ray, "STARTS", 2)
    with pytest.raises(UserError, match="fatal: its worker died 2 times") as error:
        run([step("fatal"), step("one")], tmp_path)
    assert "--config.resources" in str(error.value)
    assert finished(Store(tmp_path)) == {"one"}


def test_what_no_node_has_is_refused_before_any_work(cluster, tmp_path):
    fakes = Fakes("ray", resources={"CPU": 1.0, "TPU": 4.0})
    with pytest.raises(UserError, match=r"4 TPU \(most: 0\)"):
        runners.chosen(fakes)
    assert not list(tmp_path.iterdir())


def test_the_driver_sees_how_far_steps_are(cluster, tmp_path):
    on_ray.connect(Fakes("ray"))
    with on_ray.Tasks(Fakes("ray"), Store(tmp_path), 1) as tasks:
        one, told = step("one"), {}
        running = {tasks.submit(one): one}
        ended = []
        while not ended:
            ended = list(tasks.done(running, lambda latest, steps: told.update(latest)))
        assert ended[0].result() is None and one.key in tasks.begun
    assert fake_steps.finished(Store(tmp_path)) == {"one"}
