"""The law E[L | N, k] = L* + B·N^−β + A₀·N^−γ / (k + b), fitted to rows of runs.

    merging fit --config fit/law --config.rows=RUN1,RUN2 --config.fit_k=4 --workdir law

`rows` are workdirs of sweeps, their results.jsonl, or a CSV with the columns N, k, loss
(and seed, subset, group). One law for each family, base and method. Cost: seconds.
Result: analysis.json with parameters, intervals and held-out errors; figures.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.rows = ()  # workdirs or files of rows; or one CSV
    config.form = "merging"  # or saturating, a law of the gain over the base
    config.quantity = "cross_entropy"  # or error (1 − value), value, normalised
    config.split = "held_in"  # whose datasets are averaged; or held_out, all
    config.weights = "k"  # of an observation: its k; or none
    config.fit_k = 0  # a second fit on k up to this, to predict the rest; 0: none
    config.fit_N = 0  # the same of N, parameters
    config.predict_N = ()  # parameters of models that nobody has merged yet
    config.resamples = 200  # of the bootstrap, over seeds and subsets
    config.level = 0.95  # of intervals
    config.seed = 0  # of the bootstrap
    return config
