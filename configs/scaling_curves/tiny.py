"""The scaling curves on a laptop: two sizes, both bases, all methods, one seed.

merging sweep --config configs/scaling_curves/tiny.py --workdir curves
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.suite = "miniworld"
    config.data = ConfigDict(
        dict(
            world_seed=2,  # 0 and 1 served to design the suite and its recipe
            train_examples=8192,
            validation_examples=64,
            test_examples=256,
            documents=40_000,
            instructions=40_000,
            categories=(),  # of these alone, held-in and held-out; () for all
        )
    )
    config.family = "tiny"
    config.sizes = ("1x", "8x")
    config.bases = ("pt", "it")
    config.methods = ("average", "task_arithmetic", "ties", "dare_ties", "rht")
    config.experts_merged = (2, 4, 8)
    config.seeds = 1

    # Every size trains on the same tokens at rate × (parameters / smallest)^exponent.
    config.learning_rate = 6e-3
    config.learning_rate_exponent = -0.25
    config.batch_size = 32
    config.pretraining = ConfigDict(dict(steps=3000))
    config.instruction = ConfigDict(dict(steps=2500, rate=0.5))
    config.expert = ConfigDict(dict(steps=300, rate=0.4))
    # As many steps as the eight experts have together.
    config.multitask = ConfigDict(dict(steps=2400, rate=0.5, validate_every=150))

    # λ, and density where it matters, are chosen on validation for every merge.
    config.scales = ConfigDict(
        dict(
            task_arithmetic=(0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0),
            ties=(0.2, 0.5, 1.0, 1.5, 2.1, 2.8),
            dare_ties=(0.05, 0.15, 0.3, 0.6, 1.0, 1.4),
            rht=(0.2, 0.5, 0.8, 1.1, 1.4, 1.8),
        )
    )
    config.densities = ConfigDict(
        dict(ties=(0.2, 0.5), dare_ties=(0.2, 0.5), rht=(0.4, 0.7))
    )
    config.keep_merges = False  # write each chosen merge as a checkpoint, too
    config.method_files = ()  # Python files that register methods of your own
    config.runner = ""  # inline, in this process; local, a process for each core
    config.workers = 0  # of the local runner; one per CPU core
    # Of inline steps: data copies the model and splits the batch, fsdp splits both.
    config.mesh = ConfigDict(dict(data=-1, fsdp=1, tensor=1))
    return config
