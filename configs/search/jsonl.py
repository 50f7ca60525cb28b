"""A weight for each expert, searched on a suite of your own, from JSON lines.

    merging search --config configs/search/jsonl.py --config.suite.files=mine.jsonl \\
        --config.base=BASE --config.experts=EXPERT1,EXPERT2 --workdir found
"""

import weights
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = weights.get_config()
    config.suite = ConfigDict(dict(name="jsonl", files=("",), train=True, chat=False))
    return config
