"""A checkpoint on a suite of your own, from files of JSON lines, in its own tokens.

    merging evaluate --config configs/evaluate/jsonl.py \\
        --config.checkpoint=MODEL --config.suite.files=mine.jsonl --workdir scores

What a line holds: `merging/tasks/jsonl/__init__.py`. Prompt and answer are joined by a
space, or by the white space that the prompt ends in. Of held-in lines that say no part,
one in twenty is tested: those that training on the same files leaves out. Of files that
nothing is trained on, with --config.suite.train=False, every other one, as in
scaling_curves/own_models.
"""

import miniworld
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = miniworld.get_config()
    config.suite = ConfigDict(dict(name="jsonl", files=("",), train=True, chat=False))
    return config
