"""AdaMerging on the prompts of a suite of your own, from JSON lines.

    merging adamerge --config configs/adamerge/jsonl.py \\
        --config.suite.files=mine.jsonl --config.base=BASE \\
        --config.experts=EXPERT1,EXPERT2 --workdir adamerged

Their targets stand in the files for other commands; this one does not read them.
"""

import layers
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = layers.get_config()
    config.suite = ConfigDict(dict(name="jsonl", files=("",), chat=False))
    return config
