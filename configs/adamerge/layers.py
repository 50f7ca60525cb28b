"""AdaMerging: λ of each expert in each layer, by entropy on unlabelled prompts.

    merging adamerge --config configs/adamerge/layers.py --config.base=BASE \\
        --config.experts=EXPERT1,EXPERT2 --workdir adamerged

θ = θ₀ + Σ λ[layer, expert] Δᵢ (Yang et al. 2024, arXiv 2310.02575). Models are what
`merging evaluate` takes. A model whose leaves hold all layers together (Orbax) has one
λ for each leaf (coefficients=tensor), or is converted first. Cost of a step: about a
training step on `batch_size` prompts of each dataset; base, experts, and a float32
model with its gradient in memory.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.base = ""
    config.experts = ()  # their folders, separated by commas; NAME=FOLDER names one
    config.suite = ConfigDict(
        dict(name="miniworld", world_seed=0, validation_examples=64, chat=False)
    )
    config.tokenizer = ""  # folder of the models' tokenizer; their own
    config.datasets = ()  # whose validation prompts; the suite's held-in ones
    config.count = 0  # prompts of each, the first; 0: all
    # Leaves that share a λ of each expert: layer, tensor (the authors' code), task.
    config.coefficients = "layer"
    config.start = 0.3
    config.bounds = (0.0, 1.0)  # least and most of a λ; each step is clipped to them
    config.learning_rate = 1e-3
    config.steps = 500
    config.batch_size = 16  # prompts of each dataset in a step
    config.seed = 0  # of their order
    config.dtype = ""  # of the models while learning; as stored
    config.save_every = 50  # steps
    config.merge = True  # write the merged checkpoint too, with a manifest
    config.mesh = ConfigDict(dict(data=-1, fsdp=1, tensor=1))
    return config
