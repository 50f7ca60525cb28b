"""Four experts of SmolLM2-135M-Instruct on the miniworld, merged in three ways.

    merging convert --config configs/convert/smollm2.py --config.output=runs/smollm2
    merging sweep --config configs/smollm2/miniworld.py --workdir runs/smollm2_miniworld

A real instruction-tuned model in place of our pretrained ones: all weights are
fine-tuned, in float32. Cost: 26 minutes on two cores that others use as well, 6 GB of
memory, 2.2 GB of disk. Expect: docs/results/smollm2.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.suite = "miniworld"
    config.data = ConfigDict(
        dict(
            world_seed=3,  # 0 served to choose the rate, 2 the categories
            train_examples=512,
            validation_examples=16,
            test_examples=32,
            categories=(
                "extractive_qa",
                "sentiment",
                "topic_classification",
                "summarization",
                "sentence_completion",
                "natural_language_inference",
                "coreference",
                "word_sense_disambiguation",
            ),
        )
    )
    config.family = "smollm2"
    config.sizes = ("135M",)
    config.pretrained_bases = ("runs/smollm2",)  # a base for each size
    config.bases = ("it",)
    config.methods = ("average", "task_arithmetic", "ties")
    config.experts_merged = (2, 4)
    config.seeds = 1
    config.keep_merges = False  # write each chosen merge as a checkpoint, too

    config.learning_rate = 2e-4
    config.learning_rate_exponent = 0.0
    config.batch_size = 16
    config.dtype = "float32"  # CPUs are slower in bfloat16
    config.expert = ConfigDict(dict(steps=40, rate=1.0))

    # λ is chosen on validation for every merge.
    config.scales = ConfigDict(
        dict(
            task_arithmetic=(0.15, 0.3, 0.5, 0.8, 1.2),
            ties=(0.25, 0.5, 1.0, 1.6, 2.2),
        )
    )
    config.densities = ConfigDict(dict(ties=(0.2,)))
    config.logger = "tensorboard"  # of losses: or wandb, trackio, none
    config.runner = ""  # inline: one step at a time, with all threads
    config.mesh = ConfigDict(dict(data=-1, fsdp=1, tensor=1))  # over all devices
    config.device_memory = ""  # "16GB": experts that do not fit stay in storage
    # What a step needs of a node (--runner ray); TPU counts chips.
    config.resources = ("CPU=1",)
    return config
