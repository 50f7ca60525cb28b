"""Gaussian widths, statistical dimensions and the threshold K* of a set of experts.

    merging analyze --config analyze/saturation --config.base=BASE \\
        --config.experts=sentiment=EXPERT1,paraphrase=EXPERT2 --workdir widths
    merging analyze --config analyze/saturation:miniworld --config.base=BASE \\
        --config.experts=sentiment=EXPERT1,paraphrase=EXPERT2 --workdir saturation

Without a suite, what the Gram matrix tells, of any checkpoints: widths and ranks. With
one (`:miniworld`, `:jsonl` or `:t0`, whose experts are named after their categories),
also each expert's critical density, its statistical dimension, and K*. Cost: a pass,
and evaluations of an expert's own datasets: for the base, the expert, and at most each
density.
"""

from connectivity import SUITES
from ml_collections import ConfigDict


def get_config(suite: str = "") -> ConfigDict:
    config = ConfigDict()
    config.analysis = "saturation"
    config.base = ""
    config.experts = ()  # in the order that counts; with a suite, CATEGORY=FOLDER
    config.suite = ConfigDict(dict(name=suite))
    if suite:
        config.suite.update(dict(chat=False, **SUITES.get(suite, {})))
    # To try, from the largest down.
    config.densities = (0.9, 0.8, 0.7, 0.6, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005)
    config.share = 0.99  # of its own score that an expert must keep
    config.draws = 2**17  # Monte Carlo, for the widths
    config.orders = 64  # random orders of the experts to average over
    config.seed = 0
    config.memory_budget = "1GB"
    config.split = "test"
    config.count = 0  # the first examples of each dataset; 0: all
    config.batch_size = 0  # rows of a call of the model; 0: as suits the datasets
    config.dtype = ""
    return config
