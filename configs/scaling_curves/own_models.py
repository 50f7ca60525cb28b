"""Your own base and its fine-tunes: every method, K and λ on your dev set; no training.

    merging sweep --config scaling_curves/own_models \
        --config.pretrained_bases=BASE \
        --config.given_experts=math=MATH,code=CODE,law=LAW \
        --config.data.files=dev.jsonl --workdir curves

BASE and the experts are folders (or gs:// and s3://) of a known family, safetensors or
Orbax; an expert may also be a LoRA adapter of BASE, as PEFT saves it. A line of
dev.jsonl names the category, which is that of an expert; half of a dataset's lines
choose λ, the other half is for the figures. One size, or several:
--config.pretrained_bases=BASE1,BASE2 --config.given_experts=135M/math=…,1.7B/math=….
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.suite = "jsonl"
    # `train`: lines are there to train on; categories: only some, () for all.
    config.data = ConfigDict(
        dict(files=(), train=False, chat=False, max_length=0, categories=())
    )
    config.family = "own"
    config.sizes = ()  # a name for each base; after their parameters if empty
    config.pretrained_bases = ()  # a folder for each size, or SIZE/BASE=PATH
    config.bases = ("it",)  # what they are: pt, pretrained, or it, instruction-tuned
    config.given_experts = ()  # [SIZE/][BASE/]CATEGORY=PATH
    config.methods = ("average", "task_arithmetic", "ties", "dare_ties", "rht")
    config.experts_merged = ()  # K; empty: 2, 4, …, and all that there are
    config.seeds = 1  # each another order in which experts are added

    config.dtype = "float32"  # of the activations; bfloat16 on accelerators
    config.param_dtype = ""  # of the weights; as the bases have them
    # λ, and density where it matters, are chosen on validation for every merge.
    config.scales = ConfigDict(
        dict(
            task_arithmetic=(0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0),
            ties=(0.2, 0.5, 1.0, 1.5, 2.1),
            dare_ties=(0.1, 0.3, 0.6, 1.0, 1.4),
            rht=(0.2, 0.5, 0.8, 1.1, 1.4),
        )
    )
    config.densities = ConfigDict(
        dict(ties=(0.2, 0.5), dare_ties=(0.2, 0.5), rht=(0.4, 0.7))
    )
    config.keep_merges = False  # write every chosen merge
    config.method_files = ()  # Python files that register methods of your own
    config.runner = "inline"  # on all devices; local: a process for each CPU core
    config.mesh = ConfigDict(dict(data=-1, fsdp=1, tensor=1))
    config.device_memory = ""  # "16GB": experts that do not fit stay in storage
    # What a step needs of a node (--runner ray); TPU counts chips.
    config.resources = ("CPU=1",)
    return config
