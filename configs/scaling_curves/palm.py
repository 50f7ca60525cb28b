"""The grid of "What Matters for Model Merging at Scale?" at its own sizes, on suite t0.

    merging plan --config scaling_curves/palm --topology v5p:4x4x8 --count
    merging sweep --config scaling_curves/palm --config.data.data_dir=T0 \
        --config.pretrained_bases=BASES/1b,… --config.mesh.fsdp=-1 \
        --config.mesh.tensor=4 --workdir gs://BUCKET/palm

1B, 8B, 24B and 64B in PaLM's shape, pretrained (given: a folder of Orbax for each, with
its config.json and tokenizer) and instruction-tuned from those; eight experts of each,
three runs; five methods at K = 2, 4, 6 and 8: 480 merges. Started by every process of a
slice, with the same arguments. `plan` says what it costs, and what fits.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.suite = "t0"
    config.data = ConfigDict(dict(data_dir="", max_length=1024))
    config.family = "palm"
    config.vocab_size = 256_000
    config.sizes = ("1b", "8b", "24b", "64b")
    config.pretrained_bases = tuple(f"{size}/pt=bases/{size}" for size in config.sizes)
    config.bases = ("pt", "it")
    config.methods = ("average", "task_arithmetic", "ties", "dare_ties", "rht")
    config.experts_merged = (2, 4, 6, 8)
    config.seeds = 3

    # Guesses: nobody has tuned these sizes here.
    config.learning_rate = 1e-4
    config.learning_rate_exponent = -0.25
    config.batch_size = 128
    config.instruction = ConfigDict(dict(steps=2000, rate=0.5))
    config.expert = ConfigDict(dict(steps=300, rate=0.4))
    config.multitask = ConfigDict(dict(steps=2400, rate=0.5, validate_every=400))
    config.dtype = "bfloat16"  # of activations; trained in float32, kept in bfloat16

    # λ is chosen on validation for every merge.
    config.scales = ConfigDict(
        dict(
            task_arithmetic=(0.1, 0.2, 0.3, 0.4, 0.6, 0.8),
            ties=(0.2, 0.5, 1.0, 1.5, 2.1, 2.8),
            dare_ties=(0.05, 0.15, 0.3, 0.6, 1.0, 1.4),
            rht=(0.2, 0.5, 0.8, 1.1, 1.4, 1.8),
        )
    )
    config.logger = "tensorboard"  # of losses: or wandb, trackio, none
    config.runner = "inline"
    config.mesh = ConfigDict(dict(data=1, fsdp=-1, tensor=4))  # data: over slices
    config.device_memory = ""  # "16GB": experts that do not fit stay in storage
    # What a step needs of a node (--runner ray); TPU counts chips.
    config.resources = ("CPU=1",)

    # What `merging plan` assumes: GB/s of a host's storage; the share of what chips can
    # do that is reached; rows (examples x choices x prompts) of the suite's test and
    # validation, of so many tokens, this many at a time.
    config.plan = ConfigDict(
        dict(read=2.0, write=1.0, efficiency=0.5, rows=100_000, validation_rows=8000)
    )
    return config
