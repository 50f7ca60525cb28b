"""Average checkpoints: θ = Σ wᵢθᵢ / Σ wᵢ (Wortsman et al. 2022).

    merging merge --config configs/merge/average.py \\
        --config.experts=EXPERT1,EXPERT2 --config.output=MERGED

Every config of this folder has these settings, and differs in its method. Experts (and
the base, where there is one) are safetensors or Orbax folders of one architecture; of
Orbax, a CheckpointManager's RUN, a step RUN/100, or a part of a tree, PATH#params.
Steps of any run are RUN@100,200, RUN@last:10 or RUN@* (merge/run). An expert may be a
LoRA adapter of the base, or BASE+ADAPTER; the average of one adapter is the model with
it folded in. One pass reads each input once. Cost: about the time to copy the inputs.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.base = ""  # folder of the model that the experts were fine-tuned from
    config.experts = ()  # their folders, separated by commas; NAME=FOLDER names one
    config.schedule = (
        ""  # weights along a run: uniform, ema, linear, minus_sqrt, lawa(k)
    )
    config.output = ""  # the folder to make, here or in gs://
    config.method = ConfigDict(dict(name="average", weights=None))
    config.statistics = ()  # NAME=FOLDER of each expert, for methods that want some
    # "REGEX => METHOD(…)" or "REGEX => base" for leaves that are treated otherwise.
    config.rules = ()
    # weights merges models, and adapters on their base; factors, core_space and knots
    # merge LoRA adapters into an adapter (merge/knots).
    config.space = "weights"
    config.seed = 0
    config.memory_budget = "1GB"
    config.dtype = ""  # of the merged weights; the base's, or the first expert's
    config.format = ""  # safetensors or orbax; likewise
    config.shard_size = "5GB"
    config.auxiliary_files = ""  # whose tokenizer and config to copy; likewise
    return config
