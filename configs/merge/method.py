"""Merge by any method of `merging methods`: its parameters are the config's values.

    merging merge --config configs/merge/method.py:slerp --config.method.t=0.3 \\
        --config.experts=EXPERT1,EXPERT2 --config.output=MERGED

Or by one of your own, in a Python file that registers it (`methods.register`), with
parameters in brackets; its name may be left out where the file registers one method:

    merging merge --config configs/merge/method.py --config.method.file=mine.py \\
        --config.method.name='mine(scale=0.5)' --config.base=BASE \\
        --config.experts=EXPERT1,EXPERT2 --config.output=MERGED

The manifest keeps the file's digest. What a method costs, `merging methods` says.
"""

import average
from ml_collections import ConfigDict

from merging import methods


def get_config(name: str = "") -> ConfigDict:
    config = average.get_config()
    settings = methods.parameters(name) if name else {"file": ""}
    config.method = ConfigDict({"name": name, **settings})
    return config
