"""`merging adamerge`: λ of each expert and layer, learned from unlabelled prompts."""

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
    from merging.sweep.adamerge import adamerge

    adamerge(config, workdir)
    return 0


def _options(parser: argparse.ArgumentParser) -> None:
    takes_config_and_workdir(parser)
    takes_processes(parser)


COMMAND = Command(
    "learn λ of each expert and layer from unlabelled prompts, and merge, resumably",
    """\
    AdaMerging (arXiv 2310.02575): task arithmetic with a coefficient for each expert in
    each layer, those for which the merged model's predictions on a suite's validation
    prompts have the least entropy, by Adam. Right answers are not looked at. Where a
    dataset has choices, it is the entropy over them; elsewhere of the next token.

    The base and all experts lie on the devices (--config.mesh), with a float32 model
    and its gradient. WORKDIR gets adamerge.json, the table of coefficients with the
    entropies before and after; adamerged.py, the merge as a config of `merging merge`;
    and merged/, its checkpoint. Stop it at any time; the same command continues.

    examples:
      merging adamerge --config adamerge/layers --config.base=BASE \\
          --config.experts=EXPERT1,EXPERT2 --workdir adamerged
      merging adamerge --config adamerge/jsonl --config.suite.files=mine.jsonl \\
          --config.base=BASE --config.experts=EXPERT1,EXPERT2 --workdir adamerged
      merging merge --config adamerged/adamerged.py --config.output=MERGED
    """,
    _options,
    _run,
    resumable=True,
    configs=("adamerge",),
    example="adamerge/layers",
)
