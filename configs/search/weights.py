"""Task arithmetic with a weight for each expert, searched on validation.

    merging search --config configs/search/weights.py --config.base=BASE \\
        --config.experts=EXPERT1,EXPERT2 --workdir found

θ = θ₀ + Σ wᵢΔᵢ. Models are what `merging evaluate` takes. Every config here has
these settings, and differs in method and space. Cost: a merge and an evaluation for
each trial, on all devices (--config.mesh.fsdp=-1 shares the models out over them), or
--config.batch trials at a time, by --config.workers processes or a Ray cluster
(--config.runner=ray).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.base = ""
    config.experts = ()  # their folders, separated by commas; NAME=FOLDER names one
    config.statistics = ()  # NAME=FOLDER of each expert, for methods that want some
    # Any of `merging methods` (or file="mine.py"); what space names begins with its
    # number here, and the rest stays as it is.
    config.method = ConfigDict(dict(name="task_arithmetic", scale=1.0))
    config.space = ConfigDict(dict(weights=(0.0, 1.0)))  # from, to
    config.per_expert = ("weights",)  # a number for each expert
    config.per_group = ()  # a number for each group of leaves, and for the others
    config.groups = ()  # patterns of leaves' paths: REGEX or NAME=REGEX
    config.layer_ranges = 0  # or so many ranges of layers

    config.suite = ConfigDict(
        dict(name="miniworld", world_seed=0, validation_examples=64, chat=False)
    )
    config.tokenizer = ""  # folder of the models' tokenizer; their own
    config.datasets = ()  # to be good at; the suite's held-in ones
    config.count = 0  # examples of each to choose by, the first; 0: all
    config.test_count = 0  # and to test on in the end
    config.batch_size = 0  # rows of a call of the model; 0: as suits the datasets

    config.sampler = "tpe"  # cmaes, grid or random
    config.trials = 200
    config.batch = 1  # trials asked for at a time, for several workers to make
    config.points = 5  # of the sampler grid, in each dimension
    config.search_seed = 0
    config.runner = ""  # inline; local if there are workers; ray: a Ray cluster
    config.workers = 1  # processes with a copy of the models each; 0: one per core
    config.mesh = ConfigDict(dict(data=-1, fsdp=1, tensor=1))  # of inline, and of ray
    config.resources = ("CPU=1",)  # of a Ray node for each worker; GPU=1, TPU=4
    # λ of task arithmetic to compare with, the best of which the search begins at.
    config.scales = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
    config.seed = 0  # of random masks
    config.bootstrap = ConfigDict(dict(resamples=1000, level=0.95, seed=0))
    config.merge = True  # write the best trial's checkpoint too, with a manifest
    return config
