"""The loss on the way between models, weight disentanglement, and WiSE-FT.

    merging analyze --config analyze/connectivity --config.base=BASE \\
        --config.experts=sentiment=EXPERT1,paraphrase=EXPERT2 \\
        --config.merged=MERGED --workdir connectivity
    merging analyze --config analyze/connectivity:jsonl --config.base=BASE \\
        --config.suite.files=mine.jsonl --config.merged=MULTITASK --workdir wise_ft

Experts are named after the categories of the suite that they were trained on: the
miniworld, `jsonl` (files of your own) or `t0`. Without experts it is the way from the
base to each merged model, and WiSE-FT. Cost: an evaluation for each model, and for each
of `points` − 2 points of each path: base to merge, expert to expert, expert to merge;
and K + 1 for each of `scales`. Resumable, point by point.
"""

from ml_collections import ConfigDict

SUITES = {
    "miniworld": dict(world_seed=0, test_examples=256),
    "jsonl": dict(files=("",), train=True),
    "t0": dict(data_dir="", only=()),
}


def get_config(suite: str = "miniworld") -> ConfigDict:
    config = ConfigDict()
    config.analysis = "connectivity"
    config.base = ""  # checkpoints of a known family, with config.json
    config.experts = ()  # CATEGORY=FOLDER
    config.merged = ()  # merges, and a multitask model for WiSE-FT
    config.suite = ConfigDict(dict(name=suite, chat=False, **SUITES.get(suite, {})))
    config.datasets = ()  # whose mean loss counts; the held-in ones
    config.split = "test"
    config.count = 0  # the first examples of each dataset; 0: all
    config.points = 11  # of a path, both ends among them
    config.scales = (0.3, 1.0)  # α of the disentanglement error; (): without
    config.wise_ft = True  # α between base and each merged model, by validation
    config.batch_size = 0  # rows of a call of the model; 0: as suits the datasets
    config.dtype = ""  # as the checkpoints'
    return config
