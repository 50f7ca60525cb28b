"""`merging search`: a method's coefficients, chosen on validation."""

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
    from merging.sweep.search import search

    search(config, workdir)
    return 0


def _options(parser: argparse.ArgumentParser) -> None:
    takes_config_and_workdir(parser)
    takes_processes(parser)


COMMAND = Command(
    "choose a method's coefficients on a suite's validation split, resumably",
    """\
    Search the numbers of any merge method, λ, density, a weight for each expert, for
    groups of leaves or ranges of layers apart, by the scores of the merges on a suite's
    validation split: by Optuna's TPE or CMA-ES, a grid, or at random. The base and the
    experts stay in memory; λ, densities and weights compile nothing anew, and it is
    said which numbers do. Every trial is kept in the workdir: stop it at any time, and
    the same command goes on with the trials that it would have made.

    The objective is the mean over the datasets of a merge's value over the best
    expert's. The test split is read when the search is over: the best trial stands
    there beside the base, every expert, and task arithmetic with λ chosen by a grid on
    the same validation split. WORKDIR/best.py is the best trial as a config of `merging
    merge`, and WORKDIR/merged_N its checkpoint, with a manifest; --config.merge=false
    leaves that out. With a larger --config.trials, the same search goes on.

    Trials are made one after the other on all devices of this process and any others of
    its job (--config.mesh), or in a process for each of --config.workers, or by the
    nodes of a Ray cluster (--config.runner=ray), as many at a time as --config.batch
    asks for. Every worker holds the models.
    Needs Optuna: pip install 'merging[search]'.

    examples:
      merging search --config search/weights --config.base=BASE \\
          --config.experts=EXPERT1,EXPERT2 --workdir found
      merging search --config search/ties --config.base=BASE \\
          --config.experts=EXPERT1,EXPERT2 --config.sampler=cmaes --workdir found_ties
      merging search --config search/weights --config.base=BASE \\
          --config.experts=EXPERT1,EXPERT2 --config.per_group=weights \\
          --config.layer_ranges=3 --workdir by_layers
      merging merge --config found/best.py --config.output=MERGED
    """,
    _options,
    _run,
    resumable=True,
    configs=("search",),
    example="search/weights",
)
