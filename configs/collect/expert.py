"""Statistics of an expert on the category it was tuned on, such as sentiment.

    merging collect --config configs/collect/expert.py:sentiment \\
        --config.checkpoint=sentiment/checkpoint --workdir sentiment/statistics

256 examples of its training data: the diagonal Fisher information (a gradient for each
example), and the Gram matrices of the inputs of every linear map. Cost: some seconds on
two cores at size 8x, most of it compiling.
"""

from ml_collections import ConfigDict


def get_config(what: str = "multitask") -> ConfigDict:
    config = ConfigDict()
    config.checkpoint = ""  # folder of the model, with its config.json
    config.suite = "miniworld"
    config.data = ConfigDict(
        dict(world_seed=2, train_examples=8192, validation_examples=64)
    )
    # pretrain, instruct, multitask, a held-in category or a dataset.
    config.what = what
    config.split = "train"
    config.length = 0  # the most tokens of an example; the suite's own
    config.statistics = ("fisher", "gram")
    config.examples = 256
    config.batch_size = 32  # of all processes together
    config.seed = 0  # of the examples' order
    config.save_every = 256  # examples between two states that it can go on from
    config.mesh = ConfigDict(dict(data=-1, fsdp=1, tensor=1))
    return config
