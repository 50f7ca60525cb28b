"""Averages along a run that Orbax's own CheckpointManager wrote, by the command."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import stock_orbax as stock
from flax.training.train_state import TrainState
from tolerance import rounding

from merging import UserError, checkpoints
from merging.cli import main as command_line
from merging.merge import along_run, manifest, rules
from merging.merge import streamed as stream
from merging.methods import run_weights, task_arithmetic

STEPS = (5, 20, 100, 1000)

pytestmark = pytest.mark.filterwarnings("ignore:.*params are taken")


def params(seed):
    rng = np.random.default_rng(seed)
    return {"layer": {"w": jnp.asarray(rng.standard_normal((40, 30)), jnp.float32)}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a CheckpointManager's run of flax's TrainState, with Adam's moments."""
    states = {
        step: TrainState.create(
            apply_fn=None, params=params(step), tx=optax.adamw(1e-3)
        ).replace(step=step)
        for step in STEPS
    }
    return stock.run(tmp_path_factory.mktemp("train") / "run", states)


def expected(steps, schedule):
    models = [np.asarray(params(step)["layer"]["w"], np.float64) for step in steps]
    return np.tensordot(run_weights(schedule, len(steps)), models, 1)


def weights_of(output):
    source = checkpoints.open_checkpoint(output)
    return np.asarray(source.read(["layer/w"])["layer/w"])


@pytest.mark.parametrize("schedule", ["uniform", "ema", "minus_sqrt", "lawa(2)"])
def test_one_command_averages_the_last_steps_of_a_run(run, tmp_path, schedule):
    output = tmp_path / "merged"
    argv = ["merge", "--config", "merge/run", f"--config.experts={run}@last:3"]
    argv += [f"--config.schedule={schedule}", f"--config.output={output}"]
    assert command_line.main(argv) == 0
    bound = rounding(2 * 3, 8, np.float32)
    np.testing.assert_allclose(
        weights_of(output), expected(STEPS[1:], schedule), atol=bound
    )
    settings = manifest.read(output / manifest.NAME)["settings"]
    kept = STEPS[2:] if schedule == "lawa(2)" else STEPS[1:]
    assert list(settings["experts"]) == [f"run@{step}" for step in kept]
    assert settings["schedule"] == schedule
    weights = tuple(w for w in run_weights(schedule, 3) if w)
    assert settings["method"] == f"average(weights={weights!r})"
    assert f"schedule `{schedule}`" in (output / "README.md").read_text()


def test_a_dry_run_prints_the_weights_and_makes_nothing(run, tmp_path, capsys):
    argv = ["merge", "--config", "merge/average", f"--config.experts={run}@5,20,100"]
    argv += ["--config.schedule=ema", f"--config.output={tmp_path}/out", "--dry_run"]
    assert command_line.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    found = dict(line.split()[:2] for line in lines if line.startswith("run@"))
    assert found == {"run@5": "0.640000", "run@20": "0.160000", "run@100": "0.200000"}
    assert list(tmp_path.iterdir()) == []


def test_weights_go_by_the_steps_in_whatever_order_these_are_given(
    run, tmp_path, capsys
):
    output = tmp_path / "merged"
    given = ",".join(f"{run}/{step}#params" for step in (100, 5, 1000))
    argv = ["merge", "--config", "merge/run", f"--config.experts={given}"]
    argv += ["--config.schedule=ema(0.5)", f"--config.output={output}"]
    assert command_line.main([*argv, "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [line.split()[:2] for line in lines if str(run) in line][:3]
    assert [weight for _, weight in table] == ["0.250000", "0.250000", "0.500000"]
    assert [name.partition("#")[0] for name, _ in table] == ["5", "100", "1000"]
    assert command_line.main(argv) == 0
    np.testing.assert_allclose(
        weights_of(output),
        expected((5, 100, 1000), "ema(0.5)"),
        atol=rounding(2 * 3, 8, np.float32),
    )


@pytest.mark.parametrize(
    ("experts", "weights"),
    [
        ({"RUN@300": "r", "RUN@20": "s"}, (0.9, 0.1)),
        ({"RUN@20": "r", "RUN@20#2": "s"}, (0.1, 0.9)),
        ({"late": "r/step_00000300", "early": "r/step_00000100"}, (0.9, 0.1)),
        ({"late": "r/checkpoint-1000/", "early": "r/checkpoint-300"}, (0.9, 0.1)),
        ({"a": "r/300", "b": "best"}, (0.1, 0.9)),
        ({"b": "some/model", "a": "another/model"}, (0.1, 0.9)),
        ({"r@300": "r/300/model", "r@100": "./r/100/model"}, (0.9, 0.1)),
        # Of two runs, a step count may begin anew.
        ({"a": "pretrain/step_900", "b": "anneal/step_50"}, (0.1, 0.9)),
    ],
)
def test_what_has_no_step_is_weighted_in_the_order_given(experts, weights):
    kept, method = along_run.scheduled(experts, "average", "ema(0.9)")
    assert list(kept) == list(experts)
    assert rules.parse(method).parameters["weights"] == pytest.approx(weights)


def test_a_manifest_repeats_the_average_after_the_run_went_on(run, tmp_path):
    output = tmp_path / "merged"
    stream.merge_checkpoints(
        None, [f"{run}@:100"], "average()", output, schedule="ema(0.5)"
    )
    again = stream.repeat(output / manifest.NAME, str(tmp_path / "again"))
    leaves = [manifest.read(p / manifest.NAME)["leaves"] for p in (output, again)]
    assert leaves[0] == leaves[1]


def test_the_bytes_are_those_of_the_weights_given_by_hand(run, tmp_path):
    weights = run_weights("minus_sqrt", 4)
    by_hand = [f"{run}/{step}#params" for step in STEPS]
    named = dict(zip("abcd", by_hand, strict=True))
    made = [
        stream.merge_checkpoints(
            None, [f"{run}@*"], "average", tmp_path / "one", schedule="minus_sqrt"
        ),
        stream.merge_checkpoints(
            None, named, f"average(weights={weights})", tmp_path / "two"
        ),
    ]
    first, second = map(weights_of, made)
    # Experts are added in the order of their names, so the sums round differently.
    np.testing.assert_allclose(first, second, atol=rounding(8, 8, np.float32))


def test_task_vectors_along_a_run_take_a_schedule_too(run, tmp_path):
    base = f"{run}/5#params"
    for number, method in enumerate(["task_arithmetic(scale=1.0)", task_arithmetic(1)]):
        output = tmp_path / str(number)
        stream.merge_checkpoints(
            base, [f"{run}@20:"], method, output, schedule="uniform"
        )
        found = expected(STEPS[1:], "uniform")
        bound = rounding(8, 16, np.float32)
        np.testing.assert_allclose(weights_of(output), found, atol=bound)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schedule": "lawa(9)"}, "from 1 to the 4 checkpoints"),
        ({"schedule": "emma"}, "unknown schedule 'emma'"),
        ({"method": "average(weights=(1, 1, 1, 1))"}, "both weights and a schedule"),
        ({"method": "model_stock()"}, "unknown parameter of model_stock 'weights'"),
        ({"experts": ["{run}@last:9"]}, "not as many finished steps"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    run, tmp_path, change, words
):
    settings = {"experts": ["{run}@*"], "method": "average", "schedule": "ema"} | change
    experts = [text.format(run=run) for text in settings.pop("experts")]
    method = settings.pop("method")
    base = f"{run}/5#params"
    with pytest.raises(UserError, match=words):
        stream.merge_checkpoints(base, experts, method, tmp_path / "out", **settings)
    assert list(tmp_path.iterdir()) == []


def test_steps_of_merging_train_are_averaged(tmp_path):
    """Those that a training keeps until it is done, its state beside the losses."""
    for step in (50, 100):
        state = {"params": params(step), "opt_state": {"mu": params(1)}}
        record = {"state": state, "losses": jnp.zeros(step)}
        checkpoints.save(tmp_path / "training" / f"step_{step:08d}", record)
    output = tmp_path / "merged"
    stream.merge_checkpoints(
        None, [f"{tmp_path}/training@*"], "average", output, schedule="uniform"
    )
    bound = rounding(4, 8, np.float32)
    np.testing.assert_allclose(
        weights_of(output), expected((50, 100), "uniform"), atol=bound
    )
