"""The loss on the way between models, weight disentanglement, and WiSE-FT.

    merging analyze --config analyze/connectivity --config.base=BASE \\
        --config.experts=sentiment=EXPERT1,paraphrase=EXPERT2 \\
        --config.merged=MERGED --workdir connectivity

Experts are named after the categories of the suite that they were trained on. Cost: an
evaluation for each model, and for each of `points` − 2 points of each path: base to
merge, expert to expert, expert to merge; and K + 1 for each of `scales`. Resumable,
point by point.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.analysis = "connectivity"
    config.base = ""  # checkpoints of a known family, with config.json
    config.experts = ()  # CATEGORY=FOLDER
    config.merged = ()  # merges, and a multitask model for WiSE-FT
    config.suite = ConfigDict(
        dict(name="miniworld", world_seed=0, test_examples=256, chat=False)
    )
    config.datasets = ()  # whose mean loss counts; the held-in ones
    config.split = "test"
    config.count = 0  # the first examples of each dataset; 0: all
    config.points = 11  # of a path, both ends among them
    config.scales = (0.3, 1.0)  # α of the disentanglement error; (): without
    config.wise_ft = True  # α between base and each merged model, by validation
    config.batch_size = 32
    config.dtype = ""  # as the checkpoints'
    return config
