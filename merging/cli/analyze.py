"""`merging analyze`: what task vectors look like, and why more of them stop helping."""

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
    from merging.analysis import running

    running.run(config, workdir)
    return 0


def _options(parser: argparse.ArgumentParser) -> None:
    takes_config_and_workdir(parser)
    takes_processes(parser)


COMMAND = Command(
    "geometry of task vectors, saturation, connectivity",
    """\
    Describe a base and its experts (and merges of them), without training: the
    geometry of their task vectors, streamed, in one pass over checkpoints of any size;
    how many experts fit, by a theory of saturation; or what the loss does on the way
    from one model to another. Stop it at any time; the same command continues.
    WORKDIR/analysis.json has a row for each number, WORKDIR/figures the figures.

    examples:
      merging analyze --config analyze/geometry --config.base=BASE \\
          --config.experts=EXPERT1,EXPERT2 --config.merged=MERGED --workdir geometry
      merging analyze --config analyze/saturation:miniworld --config.base=BASE \\
          --config.experts=sentiment=EXPERT1,paraphrase=EXPERT2 --workdir saturation
      merging analyze --config analyze/connectivity --config.base=BASE \\
          --config.experts=sentiment=EXPERT1,paraphrase=EXPERT2 \\
          --config.merged=MERGED --workdir connectivity
    """,
    _options,
    _run,
    resumable=True,
    configs=("analyze",),
    example="analyze/geometry",
)
