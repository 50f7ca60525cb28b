"""Statistics of a model on a category of a suite of your own files, in its own tokens.

    merging collect --config configs/collect/jsonl.py:sea \\
        --config.checkpoint=MODEL --config.data.files=mine.jsonl --workdir told

What a line holds: `merging/tasks/jsonl/__init__.py`.
"""

import expert
from ml_collections import ConfigDict


def get_config(what: str = "multitask") -> ConfigDict:
    config = expert.get_config(what)
    config.suite = "jsonl"
    config.data = ConfigDict(dict(files=("",), tokenizer="", chat=False))
    return config
