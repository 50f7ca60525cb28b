"""Average checkpoints along a training run, weighted by a schedule.

    merging merge --config configs/merge/run.py \\
        --config.experts=RUN@last:10 --config.output=MERGED

RUN holds the steps of any trainer: of Orbax's CheckpointManager, of `merging train`, of
Hugging Face's (checkpoint-N). RUN@100,200 are steps, RUN@100:300 those between,
RUN@last:10 the last ten, RUN@* all, and 'RUN/checkpoint-*' is a pattern of folders;
they are weighted in the order of their numbers. One pass; --dry_run prints the weights.
"""

import average
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = average.get_config()
    # ema or ema(ALPHA), 0.2 (PMA, arXiv 2505.12082); linear and minus_sqrt (WSM, arXiv
    # 2507.17634); lawa(k), the mean of the k latest (arXiv 2209.14981); uniform.
    config.schedule = "ema"
    return config
