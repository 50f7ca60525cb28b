"""`merging merge`: checkpoints of any size into a new one."""

import argparse
from pathlib import Path

from merging.cli.command import Command, takes_config, takes_processes
from merging.runtime.errors import UserError


def _run(arguments: argparse.Namespace) -> int:
    from merging.merge import streamed as stream
    from merging.runtime import config, processes

    if arguments.manifest:
        if arguments.config or not arguments.output:
            raise UserError("--manifest goes with --output, and without --config.")
        processes.initialize()
        path = stream.repeat(arguments.manifest, arguments.output)
        if processes.is_first():
            print(f"Merged: {path}")
        return 0
    if not arguments.config or arguments.output:
        raise UserError(
            "merging merge needs --config FILE.py, with --config.output=DIR; or"
            " --manifest FILE with --output DIR."
        )
    loaded = config.load(arguments.config, arguments.overrides)
    stream.run(loaded, dry_run=arguments.dry_run)
    return 0


def _options(parser: argparse.ArgumentParser) -> None:
    takes_config(parser, required=False)
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="print the plan (blocks, passes, bytes, memory) and stop",
    )
    parser.add_argument(
        "--manifest", type=Path, metavar="FILE", help="repeat the merge it records"
    )
    parser.add_argument(
        "--output", metavar="DIR", help="where to, with --manifest only"
    )
    takes_processes(parser)


COMMAND = Command(
    "merge checkpoints of any size into a new one, resumably",
    """\
    Merge checkpoints on disk, safetensors or Orbax folders, into a new one: block
    by block under a memory budget, with statistics over the whole model, and the
    same bytes for any budget and any number of devices and processes. Stop it at
    any time; the same command continues. The output appears when it is complete.

    examples:
      merging merge --config configs/merge/ties.py --config.base=BASE \\
          --config.experts=EXPERT1,EXPERT2 --config.output=MERGED
      merging merge --config configs/merge/ties.py --config.base=BASE \\
          --config.experts=EXPERT1,EXPERT2 --config.output=MERGED --dry_run
      merging merge --config configs/merge/mergekit.py \\
          --config.merge_yaml=mergekit.yml --config.output=MERGED
      merging merge --manifest MERGED/manifest.json --output AGAIN
    """,
    _options,
    _run,
    resumable=True,
)
