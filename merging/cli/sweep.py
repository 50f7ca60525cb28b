"""`merging sweep`: the whole grid."""

import argparse
import re

from merging.cli.command import (
    Command,
    config_and_workdir,
    takes_config_and_workdir,
    takes_processes,
)


def _run(arguments: argparse.Namespace) -> int:
    config, workdir = config_and_workdir(arguments)
    from merging import sweep

    if arguments.runner:
        with config.unlocked():
            config.runner = arguments.runner
    index, count = arguments.shard
    if count > 1:
        workdir = workdir / f"shard_{index}_of_{count}"
    sweep.sweep(config, workdir, shard=arguments.shard)
    return 0


def _options(parser: argparse.ArgumentParser) -> None:
    takes_config_and_workdir(parser)
    parser.add_argument(
        "--shard",
        type=_shard,
        default=(0, 1),
        metavar="i/n",
        help="do the i-th of n parts of the grid, i from 0 to n-1, in"
        " WORKDIR/shard_i_of_n",
    )
    parser.add_argument(
        "--runner",
        choices=("inline", "local", "ray"),
        help="where steps run: one at a time, on all devices of this process and any"
        " others of its job (--config.mesh); in a process for each core; or on the"
        " nodes of a Ray cluster, RAY_ADDRESS's (--config.resources). By default one"
        " of the first two, which fits the models",
    )
    takes_processes(parser)


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not int(found[1]) < int(found[2]):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no part i/n of a grid; of four parts the first is 0/4 and"
            " the last 3/4"
        )
    return int(found[1]), int(found[2])


COMMAND = Command(
    "train, merge, evaluate and report a whole grid, resumably",
    """\
    Train bases and experts, merge them in every way the config lists, evaluate
    each model, and write the report. Every finished step is kept in the workdir:
    stop it at any time, and the same command continues; run it again when it is
    done, and it does nothing. A step that fails is named and leaves undone what
    needs it; the rest is done, and the same command tries it again.

    examples:
      merging sweep --config scaling_curves/tiny --workdir curves
      merging sweep --config scaling_curves/tiny \\
          --config.sizes=1x,8x --config.seeds=3 --workdir more
      merging sweep --config scaling_curves/own_models --config.pretrained_bases=BASE \\
          --config.given_experts=math=MATH,code=CODE --config.data.files=dev.jsonl
      launch/local.sh --processes 2 merging sweep --config FILE.py --runner inline \\
          --config.mesh.fsdp=-1 --workdir DIR    # each step on both processes' devices
      merging sweep --config FILE.py --workdir DIR --shard 0/4   # one of 4 machines
    A workdir has one driver at a time. Parts lie in folders of their own, and `merging
    report --workdir DIR/shard_*` joins their rows.
    """,
    _options,
    _run,
    resumable=True,
    configs=("scaling_curves", "smollm2"),
    example="scaling_curves/tiny",
)
