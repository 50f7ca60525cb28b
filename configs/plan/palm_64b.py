"""64B in PaLM's shape: merge eight experts, score, fine-tune.

    merging plan --config configs/plan/palm_64b.py --topology v5p:4x4x8

Cost: two minutes of this machine, most of it compiling; a second with --count. Expect
on 128 chips of v5p: everything fits, the merge in memory takes a tenth of a second and
moves counts only, reading the models takes longest, and training is bound by compute.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.family = "palm"
    config.size = "64b"
    config.vocab_size = 256_000
    config.experts = 8
    config.method = ConfigDict(dict(name="ties", density=0.2, scale=1.0, weights=None))
    config.memory_budget = "1GB"  # of each host's blocks, in a streamed merge
    config.mesh = ConfigDict(dict(fsdp=-1, tensor=4))  # and data over slices
    config.storage = ConfigDict(dict(read=2.0, write=1.0))  # GB/s of one host
    config.scoring = ConfigDict(dict(batch=128, length=1024))
    # AdamW's moments have param_dtype too.
    config.training = ConfigDict(
        dict(batch=128, length=1024, param_dtype="float32", dtype="bfloat16")
    )
    config.efficiency = 0.5  # the share of what chips can do that is reached
    return config
