"""A checkpoint on the miniworld suite, in its own tokens.

    merging evaluate --config configs/evaluate/miniworld.py \\
        --config.checkpoint=MODEL --workdir scores

The model is a folder with config.json, safetensors or Orbax, and its tokenizer; a
family's, which was trained here, knows the suite's words and needs none. Nothing is
downloaded. Cost: 23 datasets of 256 examples each, a minute or two for a model of ten
million parameters on two cores.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.checkpoint = ""  # folder of the model; or RUN, RUN/100, PATH#params of Orbax
    config.tokenizer = ""  # folder of its tokenizer; the checkpoint's own
    config.suite = ConfigDict(
        dict(name="miniworld", world_seed=0, test_examples=256, chat=False)
    )
    config.datasets = ()  # all of the suite's
    config.split = "test"
    config.count = 0  # the first examples of each dataset; 0: all
    config.metrics = ("accuracy_norm",)  # beside each dataset's own, where they fit
    config.batch_size = 32
    config.context = 0  # tokens; 0: what the model's config says
    config.dtype = ""  # as the checkpoint's
    config.mesh = ConfigDict(dict(data=-1, fsdp=1, tensor=1))
    config.bootstrap = ConfigDict(dict(resamples=1000, level=0.95, seed=0))
    # What the result rows say of the model; family and size are its family's and its
    # number of parameters if empty.
    config.labels = ConfigDict(
        dict(family="", size="", base="pt", method="base", K=0, subset=(), seed=0)
    )
    config.base_results = ""  # workdirs to hold the rows against
    config.expert_results = ""
    config.samples = True  # write every prompt, answer and metric for other programs
    return config
