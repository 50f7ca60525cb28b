"""Steps and searches on a real Ray cluster of two nodes, one of which is lost."""

import functools
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fake_steps
import jax
import pytest
import searches
import together
from fake_steps import Fakes, finished, step

from merging.cli.main import main
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

    jax.devices()  # the driver keeps its own; a node's processes have one each
    here = [str(Path(fake_steps.__file__).parent), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, here)))
        patch.setenv("XLA_FLAGS", together.environment(1)["XLA_FLAGS"])
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
        patch.setenv("RAY_ADDRESS", made.address)
        # To the head, before another node is there.
        on_ray.connect(Fakes("ray").resources)
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
    on_ray.connect(Fakes("ray").resources)
    with on_ray.Tasks(Fakes("ray"), Store(tmp_path), 1) as tasks:
        one, told = step("one"), {}
        running = {tasks.submit(one): one}
        ended = []
        while not ended:
            ended = list(tasks.done(running, lambda latest, steps: told.update(latest)))
        assert ended[0].result() is None and one.key in tasks.begun
    assert fake_steps.finished(Store(tmp_path)) == {"one"}


def actors(folder, most):
    make = functools.partial(fake_steps.Answers, folder)
    return on_ray.Actors(make, {"CPU": 1.0}, most)


def test_actors_keep_what_they_made_and_answer_in_order(cluster, tmp_path):
    on_ray.connect({"CPU": 1.0})
    with actors(tmp_path, 2) as two:
        told = [*two.map("told", "abc"), *two.map("told", "de")]
        assert [name for name, _, _ in told] == list("abcde")
        workers = {process for _, process, _ in told}
        last = {w: max(n for _, p, n in told if p == w) for w in workers}
        assert len(workers) <= 2 and sum(last.values()) == 5
        with pytest.raises(UserError, match="^the rate is too high$"):
            list(two.map("told", ["mistaken"]))
        with pytest.raises(RuntimeError, match="^TwoPartError: an odd error$"):
            list(two.map("told", ["odd"]))
        assert next(two.map("told", "f"))[0] == "f"


def test_an_actor_that_dies_is_made_again_but_not_for_ever(
    cluster, tmp_path, monkeypatch
):
    monkeypatch.setattr(on_ray, "STARTS", 2)
    on_ray.connect({"CPU": 1.0})
    with actors(tmp_path, 1) as one:
        (before,) = one.map("told", ["a"])
        lost, after = one.map("told", ["lost", "b"])
        assert lost[0] == "lost" and lost[1] != before[1] and after[2] == 2
        with pytest.raises(UserError, match="a worker died 2 times") as error:
            list(one.map("told", ["fatal"]))
        assert "--config.resources" in str(error.value)


def test_a_search_has_the_trials_of_one_process(cluster, tmp_path):
    place = searches.write(tmp_path)
    few = {"trials": 3, "batch": 2, "scales": "0.6", "merge": "false"}
    for runner in ("ray", "inline"):
        argv = searches.arguments(place, tmp_path / runner, runner=runner, **few)
        assert main(argv) == 0
    assert searches.found(tmp_path / "ray") == searches.found(tmp_path / "inline")
    tested = [searches.records(tmp_path / r, "test") for r in ("ray", "inline")]
    assert tested[0] == tested[1] and len(searches.found(tmp_path / "ray")) == 3
    argv = searches.arguments(
        place, tmp_path / "w", runner="ray", resources="CPU=1,TPU=4"
    )
    assert main(argv) == 2
    assert not (tmp_path / "w").exists()
