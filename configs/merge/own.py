"""A method of your own, in a Python file that registers it (`methods.register`).

    merging merge --config configs/merge/own.py --config.method.file=mine.py \\
        --config.base=BASE --config.experts=EXPERT1,EXPERT2 --config.output=MERGED

Its name may be left out where the file registers one method, and may have parameters:
`--config.method.name="mine(scale=0.5)"`. The manifest keeps the file's digest.
"""

import average
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = average.get_config()
    config.method = ConfigDict(dict(file="", name=""))
    return config
