"""Eight experts of SmolLM2-135M-Instruct on real English, merged in five ways.

    merging convert --config configs/convert/smollm2.py --config.output=runs/smollm2
    merging tasks prepare --suite english --data_dir data
    merging sweep --config configs/smollm2/english.py --workdir runs/smollm2_english

The suite: merging/tasks/english. All weights are fine-tuned, in float32, 40 steps of 16
texts an expert. Cost: two cores took an hour for a seed, beside other work twice that;
12 GB of memory, 4.1 GB of disk, and 11 more with keep_merges. The learning rate is
the only one that was tried. Expect: docs/results/english.
"""

import miniworld
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = miniworld.get_config()
    config.suite = "jsonl"
    # The first of each dataset, in an order by hashes; 0 for all.
    few = dict(validation_examples=16, test_examples=32)
    config.data = ConfigDict(dict(files=("data/english.jsonl",), **few))
    config.methods = ("average", "task_arithmetic", "ties", "dare_ties", "rht")
    config.experts_merged = (2, 4, 6, 8)
    config.learning_rate = 1e-4
    # Wide enough: of docs/results/english's first seed no choice is at an end.
    config.scales.task_arithmetic = (0.3, 0.5, 0.8, 1.2, 1.7)
    config.scales.ties = (1.0, 1.6, 2.2, 3.0, 4.0)
    config.scales.dare_ties = (0.3, 0.6, 1.0, 1.5, 2.2)
    config.scales.rht = (0.8, 1.1, 1.4, 1.8, 2.4)
    config.densities.dare_ties = (0.2,)
    config.densities.rht = (0.7,)
    return config
