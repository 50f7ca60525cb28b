"""Training learns, resumes to the bit, stops in time, and spreads over devices."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from tolerance import decoder_length, rounding

from merging import checkpoints, models, training
from merging.runtime import sharding, storage
from merging.runtime.errors import Preempted, UserError
from merging.tasks.sampling import permuted
from merging.training import batches, job, steps
from merging.training.batches import Batches

CONFIG = models.DecoderConfig(
    vocab_size=24, d_model=16, layers=2, heads=4, kv_heads=2, head_dim=8, d_ff=16
)
HYPERPARAMETERS = training.Hyperparameters(
    steps=23, batch_size=8, learning_rate=1e-2, warmup_steps=4, log_every=5
)


def copies(count=64, seed=0):
    """Sequences whose second half repeats the first, learned on the second half."""
    half = np.random.default_rng(seed).integers(3, 24, (count, 6))
    tokens = np.zeros((count, 32), np.int32)
    tokens[:, :12] = np.concatenate([half, half], axis=1)
    weights = np.zeros((count, 32), bool)
    weights[:, 6:12] = True
    return training.Examples(tokens, weights)


EXAMPLES = copies()
# Relative, of a loss. Earlier steps add little: what they do to the parameters reaches
# a loss times the gradient and the learning rate.
CLOSE = rounding(
    decoder_length(layers=2, width=16, inner=32, mlp=16, context=16, vocabulary=24)
)
PARAMS = models.init(CONFIG, 0)
loss_and_gradient = jax.jit(jax.value_and_grad(training.loss, 1), static_argnums=0)


class Killed(Exception):
    pass


def train_until(step, **arguments):
    def report(now):
        if now.step >= step:
            raise Killed

    with pytest.raises(Killed):
        training.train(CONFIG, PARAMS, EXAMPLES, report=report, **arguments)


def assert_same_bits(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture(scope="module")
def plain():
    return training.train(CONFIG, PARAMS, EXAMPLES, HYPERPARAMETERS)


def test_loss_falls_and_the_given_parameters_stay(plain):
    before = np.array(PARAMS["embed"])
    assert plain.losses.shape == (23,) and plain.losses.dtype == np.float32
    assert plain.losses[-3:].mean() < plain.losses[:3].mean() - 0.3
    assert plain.steps == plain.best_step == 23 and not plain.stopped_early
    np.testing.assert_array_equal(before, PARAMS["embed"])


@pytest.mark.numeric
def test_the_first_steps_equal_adamw_by_hand():
    """Loss, clipping, AdamW, warm-up and cosine in NumPy, gradients from JAX."""
    hyperparameters = dataclasses.replace(
        HYPERPARAMETERS, steps=6, warmup_steps=2, weight_decay=0.1, clip_norm=0.05
    )
    got = training.train(CONFIG, PARAMS, EXAMPLES, hyperparameters)
    tokens, weights = batches.opened(EXAMPLES, 24).examples
    params, m, v = (
        dict(leaves.items())
        for leaves in (steps.tree.flatten(jax.device_get(PARAMS)), {}, {})
    )
    for i in range(6):
        rows = permuted(0, 0, 64, 8 * i, 8 * i + 8)
        value, g = loss_and_gradient(
            CONFIG, steps.tree.unflatten(params), tokens[rows], weights[rows]
        )
        np.testing.assert_allclose(got.losses[i], value, rtol=CLOSE)
        g = steps.tree.flatten(jax.device_get(g))
        norm = np.sqrt(sum(np.square(x).sum() for x in g.values()))
        cosine = 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * max(i - 2, 0) / 4))
        rate = 1e-2 * min((i + 1) / 2, cosine)
        for name in params:
            clipped = g[name] * min(1, 0.05 / norm)
            m[name] = 0.9 * m.get(name, 0) + 0.1 * clipped
            v[name] = 0.98 * v.get(name, 0) + 0.02 * clipped**2
            update = m[name] / (1 - 0.9 ** (i + 1))
            update = update / (np.sqrt(v[name] / (1 - 0.98 ** (i + 1))) + 1e-8)
            decay = 0.0 if name.endswith("norm") else 0.1
            params[name] = params[name] - rate * (update + decay * params[name])


def test_columns_that_teach_nothing_are_cut_to_a_multiple_of_16():
    assert batches.opened(EXAMPLES, 24).examples.tokens.shape == (64, 16)


def test_a_run_in_an_object_store_continues_to_the_same_bits(object_store, plain):
    """Killed between two objects of its newest checkpoint."""
    workdir = storage.place("gs://store/training")
    hyperparameters = dataclasses.replace(HYPERPARAMETERS, checkpoint_every=8)
    train_until(18, hyperparameters=hyperparameters, workdir=workdir)
    for mark in ("commit_success.txt", "_CHECKPOINT_METADATA", "state/_METADATA"):
        (workdir / "step_00000016" / mark).unlink()
    seen = []
    resumed = training.train(
        *(CONFIG, PARAMS, EXAMPLES, hyperparameters),
        workdir=workdir,
        report=lambda now: seen.append(now.step),
    )
    assert min(seen) == 10
    assert_same_bits(resumed.losses, plain.losses)
    assert_same_bits(resumed.params, plain.params)
    saved = sorted(path.name for path in workdir.iterdir())
    assert saved == ["step_00000008", "step_00000016"]


@pytest.mark.parametrize("newest_is_damaged", [False, True])
def test_a_killed_run_continues_to_the_same_bits(tmp_path, plain, newest_is_damaged):
    hyperparameters = dataclasses.replace(HYPERPARAMETERS, checkpoint_every=7)
    train_until(16, hyperparameters=hyperparameters, workdir=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step_00000007",
        "step_00000014",
    ]
    if newest_is_damaged:
        shutil.rmtree(tmp_path / "step_00000014" / "state")
    seen = []
    resumed = training.train(
        CONFIG,
        PARAMS,
        EXAMPLES,
        hyperparameters,
        workdir=tmp_path,
        report=lambda now: seen.append(now.step),
    )
    assert min(seen) == (10 if newest_is_damaged else 15)
    assert_same_bits(resumed.losses, plain.losses)
    assert_same_bits(resumed.params, plain.params)


def test_a_preempted_run_saves_its_step_and_continues_to_the_same_bits(
    tmp_path, plain, monkeypatch
):
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr("merging.runtime.processes.preempted", lambda: seen[-1] >= 3)
        with pytest.raises(Preempted, match="SIGTERM at step"):
            training.train(
                CONFIG,
                PARAMS,
                EXAMPLES,
                HYPERPARAMETERS,
                workdir=tmp_path,
                report=lambda now: seen.append(now.step),
            )
    (saved,) = tmp_path.iterdir()
    assert saved.name == f"step_{seen[-1]:08d}"
    resumed = training.train(
        CONFIG, PARAMS, EXAMPLES, HYPERPARAMETERS, workdir=tmp_path
    )
    assert_same_bits(resumed.losses, plain.losses)
    assert_same_bits(resumed.params, plain.params)


def test_a_workdir_of_another_training_is_refused(tmp_path):
    hyperparameters = dataclasses.replace(HYPERPARAMETERS, steps=5, checkpoint_every=5)
    training.train(CONFIG, PARAMS, EXAMPLES, hyperparameters, workdir=tmp_path)
    other = dataclasses.replace(hyperparameters, learning_rate=2e-2)
    rotated = dataclasses.replace(CONFIG, rope_theta=100.0)
    for config, examples, changed in (
        (CONFIG, EXAMPLES, other),
        (CONFIG, copies(seed=1), hyperparameters),
        (rotated, EXAMPLES, hyperparameters),
    ):
        with pytest.raises(UserError, match="other hyperparameters, model or examples"):
            training.train(config, PARAMS, examples, changed, workdir=tmp_path)


def test_a_new_learning_rate_or_length_does_not_recompile(plain):
    run = steps.train_functions(CONFIG, "float32", None).run
    before = run._cache_size()
    changed = dataclasses.replace(
        HYPERPARAMETERS,
        learning_rate=3e-3,
        steps=11,
        warmup_steps=1,
        weight_decay=0.1,
        b1=0.8,
    )
    other = training.train(CONFIG, PARAMS, EXAMPLES, changed)
    assert run._cache_size() == before > 0
    assert not np.array_equal(other.losses[1:], plain.losses[1:11])


def test_divergence_names_the_step_and_the_last_good_checkpoint(tmp_path):
    """Finite until step 14, whose batch holds the row with the infinite weight."""
    hyperparameters = dataclasses.replace(
        HYPERPARAMETERS, learning_rate=1e-4, checkpoint_every=4
    )
    poisoned = int(permuted(0, 0, 64, 56, 64)[0])
    weights = np.array(EXAMPLES.loss_weights, np.float32)
    weights[poisoned] *= 3e38
    examples = training.Examples(EXAMPLES.tokens, weights)
    with pytest.raises(training.TrainingDiverged) as error:
        training.train(CONFIG, PARAMS, examples, hyperparameters, workdir=tmp_path)
    assert error.value.step == 7
    assert error.value.checkpoint == tmp_path / "step_00000004"
    assert "step 7" in str(error.value) and "step_00000004" in str(error.value)


def test_early_stopping_returns_the_best_parameters_beside_the_last(tmp_path):
    """Validation on contradicting targets gets worse as soon as training works."""
    hyperparameters = dataclasses.replace(
        HYPERPARAMETERS, steps=60, validate_every=5, patience=2, checkpoint_every=5
    )
    # Eight, again and again: in the shape of the other trainings.
    few = training.Examples(*(np.tile(x, (8, 1)) for x in copies(8)))
    opposite = copies(40, seed=5)
    half = opposite.tokens[:, 6:12].copy()
    opposite.tokens[:, 6:12] = np.roll(half, 1, axis=1)
    arguments, notes = dict(validation=opposite, workdir=tmp_path), []
    got = training.train(
        CONFIG, PARAMS, few, hyperparameters, **arguments, note=notes.append
    )
    curve = got.validation_losses
    every = -(-40 // HYPERPARAMETERS.batch_size)
    told = [f"validating, batch {i} of {every}" for i in range(1, every + 1)]
    assert notes == told * len(curve)
    assert got.stopped_early and got.steps < 60
    assert got.best_step == min(curve, key=curve.get)
    assert got.steps == got.best_step + 10
    held_back = batches.opened(opposite, 24).examples
    loss = jax.jit(training.loss, static_argnums=0)
    for params, step in ((got.best, got.best_step), (got.params, got.steps)):
        value = float(loss(CONFIG, params, *held_back))
        assert value == pytest.approx(curve[step], rel=CLOSE)
    again = training.train(CONFIG, PARAMS, few, hyperparameters, **arguments)
    assert_same_bits((again.best, again.params), (got.best, got.params))


@pytest.mark.long
def test_eight_devices_train_as_one_and_resume(plain, tmp_path):
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    hyperparameters = dataclasses.replace(HYPERPARAMETERS, checkpoint_every=7)
    train_until(16, hyperparameters=hyperparameters, workdir=tmp_path, mesh=mesh)
    found = training.train(
        CONFIG, PARAMS, EXAMPLES, hyperparameters, workdir=tmp_path, mesh=mesh
    )
    np.testing.assert_allclose(found.losses, plain.losses, rtol=CLOSE)
    up = found.params["layers"]["up"]
    assert len(up.sharding.device_set) == 8
    assert up.addressable_shards[0].data.shape == (2, 8, 8)


@pytest.mark.numeric
def test_gradients_on_eight_devices_equal_those_on_one():
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    rules = sharding.shardings(PARAMS, models.partition_rules(CONFIG), mesh)
    batch = [array[:8] for array in batches.opened(EXAMPLES, 24).examples]
    _, one = loss_and_gradient(CONFIG, PARAMS, *batch)
    placed = [sharding.place_batch(mesh, array) for array in batch]
    _, many = loss_and_gradient(CONFIG, jax.device_put(PARAMS, rules), *placed)
    for ours, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        # There and back, and the sum over 48 tokens.
        close = (2 * CLOSE + rounding(48)) * float(np.abs(ours).max())
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=close)


@pytest.mark.numeric
def test_bfloat16_compute_keeps_float32_parameters_and_learns(plain):
    got = training.train(
        CONFIG, PARAMS, EXAMPLES, dataclasses.replace(HYPERPARAMETERS, dtype="bfloat16")
    )
    assert got.params["embed"].dtype == np.float32
    assert not np.array_equal(got.losses, plain.losses)
    # Sums are float32, and some twenty of their results on the way to a loss rounded;
    # those of 48 tokens are averaged, and less than four of them add up.
    close = rounding(4, dtype="bfloat16")
    np.testing.assert_allclose(got.losses, plain.losses, rtol=close)


def test_impossible_recipes_and_examples_are_refused():
    with pytest.raises(UserError) as error:
        training.Hyperparameters(
            steps=0, learning_rate=float("nan"), b2=1.0, patience=3
        )
    for name in ("steps = 0", "learning_rate = nan", "b2 = 1.0", "patience needs"):
        assert name in str(error.value)
    tokens, weights = EXAMPLES
    for bad, words in (
        ((tokens[:, :5], weights), "one shape"),
        ((tokens[:0], weights[:0]), "N > 0"),
        ((tokens, 0 * weights), "not all of them 0"),
        ((tokens + 2, weights), "vocabulary from 0 to 23"),
    ):
        with pytest.raises(UserError, match=words):
            training.train(CONFIG, PARAMS, training.Examples(*bad), HYPERPARAMETERS)
    validating = dataclasses.replace(HYPERPARAMETERS, validate_every=5)
    with pytest.raises(UserError, match="needs validation examples"):
        training.train(CONFIG, PARAMS, EXAMPLES, validating)


def test_what_is_trained_in_full_can_be_kept_in_half(tmp_path):
    what = job.Training(CONFIG, PARAMS, EXAMPLES, HYPERPARAMETERS)
    trained = job.fit(what, tmp_path, dtype="bfloat16")
    kept = checkpoints.restore(tmp_path / "checkpoint")
    whole = training.train(CONFIG, PARAMS, EXAMPLES, HYPERPARAMETERS).params
    expected = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), whole)
    assert_same_bits(trained.params, expected)
    assert_same_bits(kept, expected)
    assert trained.best is trained.params


def test_a_small_models_loops_on_cpus_are_xlas_own():
    functions = steps.train_functions(CONFIG, HYPERPARAMETERS.dtype, None)
    numbers = steps.TracedHyperparameters.of(HYPERPARAMETERS)
    state = functions.start(PARAMS, numbers)
    batch = np.zeros((5, 8, 32), np.int32), np.ones((5, 8, 32), np.float32)
    compiled = functions.run.lower(
        state, Batches(*batch), np.int32(5), numbers
    ).compile()
    assert "fusion" in compiled.as_text()
    assert "ynn" not in compiled.as_text()
