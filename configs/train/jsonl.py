"""A model tuned on a category of a suite of your own files, in its own tokens.

    merging train --config configs/train/jsonl.py:sea --config.start=MODEL \\
        --config.data.files=mine.jsonl --workdir sea

What a line holds: `merging/tasks/jsonl/__init__.py`. The model is a folder with its
config.json and tokenizer.
"""

import pretrain
from ml_collections import ConfigDict


def get_config(category: str) -> ConfigDict:
    config = pretrain.get_config()
    config.suite = "jsonl"
    config.data = ConfigDict(dict(files=("",), tokenizer="", chat=False))
    config.data.validation_examples = 0  # the first of each dataset; 0: all
    config.what = category
    config.hyperparameters.steps = 300
    config.hyperparameters.learning_rate = 1e-5
    config.hyperparameters.warmup_steps = 15
    config.hyperparameters.checkpoint_every = 100
    return config
