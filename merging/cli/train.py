"""`merging train`: one training of a suite, on all devices of all processes."""

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
    from merging.training import job

    job.run(config, workdir)
    return 0


def _options(parser: argparse.ArgumentParser) -> None:
    takes_config_and_workdir(parser)
    takes_processes(parser)


COMMAND = Command(
    "pretrain, instruct or fine-tune one model of a suite, resumably",
    """\
    Train one model on what the config names: a suite's pretraining texts, its
    instructions, one category (an expert), one dataset, or all of it (multitask);
    from fresh parameters or from a checkpoint. The mesh spans all devices of all
    processes, each of which reads its own rows. Stop it at any time; the same command
    continues, also on other devices. Process 0 reports; the others print into
    WORKDIR/logs/process_I.log.

    WORKDIR gets checkpoint/ (Orbax, to merge, convert, evaluate or train on; with
    validation also best/), losses.jsonl with the loss of every step, the same for
    TensorBoard (or for W&B or trackio, --config.logger=wandb), and train.json.

    examples:
      merging train --config train/pretrain --workdir base
      merging train --config train/expert:sentiment \\
          --config.start=base/checkpoint --workdir sentiment
      launch/local.sh --processes 2 merging train --config train/pretrain \\
          --config.mesh.fsdp=2 --workdir base
    """,
    _options,
    _run,
    resumable=True,
    configs=("train",),
    example="train/pretrain",
)
