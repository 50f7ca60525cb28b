"""A base of the miniworld suite from fresh parameters, on all devices there are.

    merging train --config configs/train/pretrain.py --workdir base

Every config of this folder has these settings; the others go on from its checkpoint.
Cost: two minutes of two cores.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.suite = "miniworld"
    config.data = ConfigDict(
        dict(
            world_seed=2,
            train_examples=8192,
            validation_examples=64,
            documents=40_000,
            instructions=40_000,
        )
    )
    # pretrain, instruct, multitask, a held-in category or a dataset.
    config.what = "pretrain"
    config.length = 0  # the most tokens of an example; the suite's own

    # A checkpoint to go on from. Without one, `pretrain` begins with fresh parameters;
    # anything else is fine-tuning, and begins so only with start="fresh".
    config.start = ""
    # What the checkpoint is, if no config.json in it says so.
    config.family = "tiny"
    config.size = "8x"
    config.seed = 0  # of fresh parameters
    config.param_dtype = ""  # of the parameters; those of the start

    # Devices of all processes: copies of the model (data) and parts of it (fsdp,
    # tensor); one may be -1, for all that are left.
    config.mesh = ConfigDict(dict(data=-1, fsdp=1, tensor=1))
    # Where losses go beside losses.jsonl: tensorboard, wandb, trackio or none.
    config.logger = "tensorboard"

    config.hyperparameters = ConfigDict(
        dict(
            steps=3000,
            batch_size=32,  # of all processes together
            learning_rate=3.6e-3,
            warmup_steps=150,
            final_learning_rate_fraction=0.1,
            weight_decay=0.0,
            clip_norm=1.0,
            dtype="float32",  # of the activations
            seed=0,  # of the examples' order
            checkpoint_every=500,
            log_every=50,
            validate_every=0,  # steps between validations
            patience=0,  # validations without improvement before it stops
        )
    )
    return config
