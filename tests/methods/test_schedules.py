"""The weights along a run, held against what they stand for."""

import numpy as np
import pytest
from tolerance import rounding

from merging import UserError
from merging.methods import run_weights


def moving_average(models, alpha):
    mean = models[0]
    for model in models[1:]:
        mean = (1 - alpha) * mean + alpha * model
    return mean


def decayed(models, share):
    """Return θ₀ + Σ dᵢ gᵢ: each update with the share that the decay leaves of it."""
    updates = np.diff(models, axis=0)
    shares = [share(i / len(models)) for i in range(1, len(models))]
    return models[0] + sum(d * g for d, g in zip(shares, updates, strict=True))


REFERENCES = {
    "uniform": lambda models: models.mean(axis=0),
    "ema": lambda models: moving_average(models, 0.2),
    "ema(0.7)": lambda models: moving_average(models, 0.7),
    "ema(alpha=1)": lambda models: models[-1],
    "linear": lambda models: decayed(models, lambda x: 1 - x),
    "minus-sqrt": lambda models: decayed(models, lambda x: 1 - np.sqrt(x)),
    "lawa(k=2)": lambda models: models[-2:].mean(axis=0),
}


@pytest.mark.parametrize("count", [2, 3, 10])
@pytest.mark.parametrize("schedule", REFERENCES)
def test_a_schedule_is_the_average_that_it_stands_for(schedule, count):
    models = np.random.default_rng(count).standard_normal((count, 50))
    weights = run_weights(schedule, count)
    bound = rounding(2 * count, np.abs(models).sum(), np.float64)
    expected = REFERENCES[schedule](models)
    np.testing.assert_allclose(np.dot(weights, models), expected, atol=bound)
    assert sum(weights) == pytest.approx(1, abs=rounding(count, 1, np.float64))
    assert min(weights) >= 0


def test_the_numbers_of_wsm_are_those_of_its_formula():
    assert run_weights("linear", 4) == (0.25, 0.25, 0.25, 0.25)
    # dᵢ = 1 − √(i/4): 1, 1/2, 1 − √½, 1 − √¾
    half, most = np.sqrt(0.5), np.sqrt(0.75)
    expected = (0.5, half - 0.5, most - half, 1 - most)
    assert run_weights("minus_sqrt", 4) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("schedule", ["uniform", "ema", "linear", "minus_sqrt"])
def test_one_checkpoint_is_itself(schedule):
    assert run_weights(schedule, 1) == (1.0,)


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ("emma", "unknown schedule 'emma': did you mean ema"),
        ("ema(2)", r"alpha must be in \(0, 1\], not 2"),
        ("ema(beta=0.1)", "ema takes one number, alpha"),
        ("ema(nan)", "alpha must be in"),
        ("uniform(3)", "uniform takes no number"),
        ("lawa", r"write lawa\(k=5\)"),
        ("lawa(2.5)", "k must be a whole number from 1 to the 3 checkpoints"),
        ("lawa(4)", "from 1 to the 3 checkpoints that there are, not 4"),
        ("__import__('os')", "unknown schedule"),
    ],
)
def test_what_is_no_schedule_is_refused(schedule, words):
    with pytest.raises(UserError, match=words):
        run_weights(schedule, 3)
