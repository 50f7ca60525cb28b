"""A family of open models by size, bases and experts given: the curves, no training.

    merging sweep --config scaling_curves/open_models:MODELS \
        --config.data.files=dev.jsonl --config.mesh.fsdp=-1 --workdir curves

MODELS is the folder (or gs://, s3://) that holds what the table below names; for other
models copy this file and change the table. Any format that `merge` takes will do, LoRA
adapters included.
"""

import own_models
from ml_collections import ConfigDict

# Size → what → path, below MODELS.
TABLE = {
    "0.5B": {
        "base": "Qwen2.5-0.5B",
        "math": "0.5B/math",
        "code": "0.5B/code",
        "chat": "0.5B/chat",
        "law": "0.5B/law",
    },
    "1.5B": {
        "base": "Qwen2.5-1.5B",
        "math": "1.5B/math",
        "code": "1.5B/code",
        "chat": "1.5B/chat",
        "law": "1.5B/law",
    },
    "7B": {
        "base": "Qwen2.5-7B",
        "math": "7B/math",
        "code": "7B/code",
        "chat": "7B/chat",
        "law": "7B/law",
    },
}


def get_config(models: str = "models") -> ConfigDict:
    config = own_models.get_config()
    config.family = "qwen2.5"
    config.sizes = tuple(TABLE)
    config.bases = ("pt",)
    config.pretrained_bases = tuple(f"{models}/{of['base']}" for of in TABLE.values())
    config.given_experts = tuple(
        f"{size}/{category}={models}/{path}"
        for size, of in TABLE.items()
        for category, path in of.items()
        if category != "base"
    )
    config.dtype = "bfloat16"
    return config
