"""`merging extract`: a LoRA adapter out of two checkpoints."""

import argparse

from merging.cli.command import Command, takes_config, takes_processes


def _run(arguments: argparse.Namespace) -> int:
    from merging.merge import extraction
    from merging.runtime import config

    extraction.run(config.load(arguments.config, arguments.overrides))
    return 0


def _options(parser: argparse.ArgumentParser) -> None:
    takes_config(parser)
    takes_processes(parser)


COMMAND = Command(
    "make a LoRA adapter of what a model adds to its base",
    """\
    Read a model and its base matrix by matrix, and write a LoRA adapter, as PEFT
    reads it, of a rank or of a share of the energy (the sum of squared singular
    values): the nearest that there is of that rank. The relative error of each
    matrix is kept beside it, and what the adapter leaves out is named. Stop it at
    any time; the same command continues.

    examples:
      merging extract --config extract/lora --config.base=BASE \\
          --config.model=MODEL --config.output=ADAPTER
      merging extract --config extract/lora --config.base=BASE \\
          --config.model=MODEL --config.energy=0.9 --config.rank=0 \\
          --config.whole='embed_tokens|norm' --config.output=ADAPTER
    """,
    _options,
    _run,
    resumable=True,
    configs=("extract",),
    example="extract/lora",
)
