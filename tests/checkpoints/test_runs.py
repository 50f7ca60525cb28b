"""Which steps of a run a text means, whatever trainer left them."""

import shutil
import warnings

import numpy as np
import pytest
import stock_orbax as stock
from safetensors.numpy import save_file

from merging import UserError, checkpoints
from merging.checkpoints import MissingCheckpoint, run_steps
from merging.merge.inputs import expert_names


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a CheckpointManager's run of steps 9, 100, 20 and an unfinished 300."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    stock.run(folder, {n: {"w": np.full(2, n)} for n in (9, 20, 100)})
    shutil.copytree(folder / "100", folder / "300")
    for mark in ("_CHECKPOINT_METADATA", "commit_success.txt"):
        for place in (folder / "300", folder / "300" / "default"):
            (place / mark).unlink(missing_ok=True)
    (folder / "400.orbax-checkpoint-tmp-1").mkdir()
    return folder


def numbers(text):
    return [step.number for step in run_steps(str(text))]


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("20", [20]),
        ("100,9", [9, 100]),
        ("last", [100]),
        ("last:2", [20, 100]),
        ("10:100", [20, 100]),
        (":20", [9, 20]),
        ("*", [9, 20, 100]),
    ],
)
@pytest.mark.filterwarnings("ignore:left out")
def test_steps_come_by_their_number_never_by_name(run, which, expected):
    assert numbers(f"{run}@{which}") == expected
    first = run_steps(f"{run}@{which}")[0]
    assert first.name == f"run@{expected[0]}"
    assert first.uri == f"{run}/{expected[0]}"


def test_a_step_that_is_being_written_is_left_out_and_that_is_said(run):
    with pytest.warns(UserWarning, match="left out, no finished checkpoints: 300"):
        assert numbers(f"{run}@last") == [100]


def test_a_pattern_is_ordered_by_the_number_in_what_it_matches(run):
    with pytest.warns(UserWarning, match="left out, .*: 300, 400.orbax"):
        assert numbers(run / "*") == [9, 20, 100]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps = run_steps(f"{run}/[29]*/default")
    assert [step.uri for step in steps] == [f"{run}/{n}/default" for n in (9, 20)]
    assert [step.name for step in steps] == ["run@9", "run@20"]


@pytest.mark.parametrize("prefix", ["checkpoint-", "step_0000", "ckpt_"])
def test_steps_of_other_trainers_are_found(tmp_path, prefix):
    for number in (1000, 200):
        folder = tmp_path / f"{prefix}{number}"
        folder.mkdir()
        save_file({"w": np.ones(2)}, folder / "model.safetensors")
    (tmp_path / "logs").mkdir()
    assert numbers(f"{tmp_path}@*") == [200, 1000]
    assert numbers(f"{tmp_path}/{prefix}*") == [200, 1000]


def test_of_a_trainings_state_the_params_of_every_step_are_meant_and_said_once(
    tmp_path,
):
    run = stock.run(tmp_path / "run", {n: stock.state(n) for n in (1, 2)})
    with pytest.warns(UserWarning, match="params are taken") as said:
        steps = run_steps(f"{run}@*")
    assert len(said) == 1
    assert [step.uri for step in steps] == [f"{run}/{n}#params" for n in (1, 2)]
    steps = run_steps(f"{run}@*#opt_state/0/mu")
    assert {checkpoints.split(step.uri)[1] for step in steps} == {"opt_state/0/mu"}


@pytest.mark.filterwarnings("ignore:left out")
def test_experts_of_a_run_are_named_after_it_and_their_step(run):
    given = [f"{run}@9", 20, "100", f"ours={run}@last", f"{run}/9"]
    assert expert_names(given) == {
        **{f"run@{n}": f"{run}/{n}" for n in (9, 20, 100)},
        "ours@100": f"{run}/100",
        "9": f"{run}/9",
    }


def test_a_folder_of_that_very_name_is_itself(tmp_path):
    for name in ("a@last", "b*"):
        path = stock.standard(tmp_path / name, {"w": np.ones(2)})
        assert run_steps(str(path)) is None
        assert expert_names([str(path)]) == {name: str(path)}


@pytest.mark.parametrize(
    ("which", "words"),
    [
        ("@lsat:2", r"to choose the steps of a run, write RUN@100,200"),
        ("@last:9", "not as many finished steps; it holds 9, 20, 100, 300"),
        ("@last:0", "not as many finished steps"),
        ("@500:", "not as many finished steps"),
        ("@9,21", r"holds no step 21; it holds 9, 20, 100, 300"),
        ("/9@*", "holds no steps, which are folders such as 100"),
        ("/x*", "no folder matches"),
        ("/*/def*[t]x", "no folder matches"),
    ],
)
@pytest.mark.filterwarnings("ignore:left out")
def test_what_is_not_there_is_answered_with_what_is(run, which, words):
    with pytest.raises(UserError, match=words):
        run_steps(f"{run}{which}")


def test_a_run_that_is_not_there_is_missing(tmp_path):
    with pytest.raises(MissingCheckpoint, match="none"):
        run_steps(f"{tmp_path}/none@last:2")


def test_a_scheme_that_is_not_read_is_refused():
    with pytest.raises(UserError, match="az:// is not supported here"):
        run_steps("az://run@last:2")


def test_steps_of_two_kinds_or_of_one_number_are_refused(tmp_path):
    for name in ("checkpoint-1", "step_1", "step_01"):
        (tmp_path / name).mkdir()
        save_file({"w": np.ones(2)}, tmp_path / name / "model.safetensors")
    with pytest.raises(UserError, match=r"several kinds \(checkpoint-N, step_N\)"):
        run_steps(f"{tmp_path}@*")
    with pytest.raises(UserError, match="step_0?1 and .*step_0?1 have the same number"):
        run_steps(f"{tmp_path}/step*")
