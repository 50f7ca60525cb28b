"""`merging collect`: what a merge may be told of a model beside its weights."""

import argparse

from merging.cli.command import (
    Command,
    config_and_workdir,
    takes_config_and_workdir,
    takes_processes,
)
from merging.runtime import compilations


def _run(arguments: argparse.Namespace) -> int:
    config, workdir = config_and_workdir(arguments)
    compilations.keep()
    from merging.training import collect

    collect.run(config, workdir)
    return 0


def _options(parser: argparse.ArgumentParser) -> None:
    takes_config_and_workdir(parser)
    takes_processes(parser)


COMMAND = Command(
    "gather a model's statistics on a suite, for merges that want some",
    """\
    Go through examples of a suite with one model, and keep what `fisher` and `regmean`
    merge by: the diagonal Fisher information of its weights, and the Gram matrices of
    the inputs of its linear maps. WORKDIR gets fisher/ and gram/, checkpoints with the
    model's leaves' names, and collect.json, which says what they were gathered of. Stop
    it at any time; the same command continues.

    examples:
      merging collect --config collect/expert:sentiment \\
          --config.checkpoint=sentiment/checkpoint --workdir sentiment/statistics
      merging merge --config merge/fisher --config.output=MERGED \\
          --config.experts=sentiment=sentiment/checkpoint,nli=nli/checkpoint \\
          --config.statistics=sentiment=sentiment/statistics,nli=nli/statistics
    """,
    _options,
    _run,
    resumable=True,
    configs=("collect",),
    example="collect/expert:sentiment",
)
