"""`merging convert`: between a family's safetensors and the decoder's Orbax."""

import argparse

from merging.cli.command import Command, takes_config, takes_processes


def _run(arguments: argparse.Namespace) -> int:
    from merging.models.hf import convert
    from merging.runtime import config

    convert.run(config.load(arguments.config, arguments.overrides))
    return 0


def _options(parser: argparse.ArgumentParser) -> None:
    takes_config(parser)
    takes_processes(parser)


COMMAND = Command(
    "turn a model of a known family into Orbax, or back into safetensors",
    """\
    Read a model with its config.json (Llama, Mistral, Qwen, Gemma, PaLM's shape)
    and write it again: as Orbax with the decoder's leaves, layers stacked, to train
    and shard; or as safetensors with the family's names, as transformers reads
    them. A Llama in a GGUF file is imported, with its tokenizer. Under a memory
    budget, whatever the model's size, and without changing a bit of a weight. The
    output appears when it is complete.

    examples:
      merging convert --config convert/to_orbax \\
          --config.input=LLAMA --config.output=LLAMA_ORBAX
      merging convert --config convert/to_safetensors \\
          --config.input=MERGED_ORBAX --config.output=MERGED
      merging convert --config convert/smollm2 --config.output=SMOLLM2
    """,
    _options,
    _run,
    configs=("convert",),
    example="convert/to_orbax",
)
