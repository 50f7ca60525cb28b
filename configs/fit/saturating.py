"""The law E[gain | K] = a·(1 − exp(−K / τ)) of the gain over the base, size by size.

    merging fit --config fit/saturating --config.rows=RUN1,RUN2 --workdir saturating

As fit/law, with another form and the suite's own metrics. Cost: seconds.
"""

import law
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = law.get_config()
    config.form = "saturating"
    config.quantity = "value"
    config.weights = "none"
    return config
