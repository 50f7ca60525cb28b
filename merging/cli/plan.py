"""`merging plan`: what work needs on chips that are not there."""

import argparse

from merging.cli.command import Command, print_for_a_pipe, takes_config


def _run(arguments: argparse.Namespace) -> int:
    import json

    from merging import planning
    from merging.runtime import config

    where = planning.topology(arguments.topology, arguments.slices)
    planning.use_no_accelerator()
    loaded = config.load(arguments.config, arguments.overrides)
    parts = arguments.only.split(",") if arguments.only else planning.PARTS
    found = planning.plan(loaded, where, compile=not arguments.count, parts=parts)
    text = json.dumps(found, indent=2) if arguments.json else planning.as_text(found)
    print_for_a_pipe(text)
    return 0


def _options(parser: argparse.ArgumentParser) -> None:
    takes_config(parser)
    parser.add_argument(
        "--topology",
        required=True,
        metavar="CHIP:SHAPE",
        help="v5p:4x4x8 or another TPU slice, also by the cloud's name, v5p-256;"
        " h200:8x16, 16 hosts of eight GPUs; cpu:8, virtual devices",
    )
    parser.add_argument(
        "--slices", type=int, default=1, metavar="N", help="TPU slices, over a network"
    )
    parser.add_argument(
        "--count", action="store_true", help="compile nothing; count, in a second"
    )
    parser.add_argument(
        "--only", metavar="PART,…", help="some of merge, scoring, training, grid"
    )
    parser.add_argument("--json", action="store_true", help="for programs")


COMMAND = Command(
    "what fits and how long it takes, before a chip is rented",
    """\
    Say whether a merge, scoring and fine-tuning fit a topology, the bytes on each
    device, what devices exchange, what hosts read and write, the time that memory,
    compute, interconnect and storage allow, the bottleneck, and chip-hours. Programs
    are compiled for TPUs on this machine, with no TPU (the extra tpu);
    for other chips they are counted. Reads no weights. Takes the config of a sweep, of
    which it also says the chip-hours and what does not fit; a plan's; or that of any
    merge with its checkpoints.

    examples:
      merging plan --config scaling_curves/palm --topology v5p:4x4x8
      merging plan --config plan/palm_64b --topology v5p:4x4x8
      merging plan --config plan/palm_64b --topology v5e:16x16 --slices 2
      merging plan --config plan/palm_64b --topology h200:8x16 --json
      merging plan --config merge/ties --config.base=BASE \\
          --config.experts=EXPERT1,EXPERT2 --topology v6e:2x4
    """,
    _options,
    _run,
    configs=("plan", "merge", "scaling_curves"),
    example="plan/palm_64b",
)
