"""`merging merge`: checkpoints of any size into a new one."""

import argparse

from merging.cli.command import Command, any_path, takes_config, takes_processes
from merging.runtime import compilations, revision
from merging.runtime.errors import UserError


def _run(arguments: argparse.Namespace) -> int:
    revision.look()  # beside the imports
    compilations.keep()
    from merging.merge import streamed as stream
    from merging.runtime import config, processes

    if arguments.manifest:
        if arguments.config or not arguments.output:
            raise UserError("--manifest goes with --output, and without --config.")
        processes.initialize()
        path = stream.repeat(
            arguments.manifest,
            arguments.output,
            inputs=_places(arguments.inputs),
            method_file=arguments.method_file,
        )
        if processes.is_first():
            print(f"Merged: {path}")
        return 0
    beside = arguments.output or arguments.inputs or arguments.method_file
    if not arguments.config or beside:
        raise UserError(
            "merging merge needs --config FILE.py, or FILE.yml for mergekit, with"
            " --config.output=DIR; or --manifest FILE with --output DIR (and --inputs,"
            " --method_file)."
        )
    loaded = config.load(arguments.config, arguments.overrides)
    stream.run(loaded, dry_run=arguments.dry_run)
    return 0


def _places(text: str | None) -> dict[str, str]:
    """Return {name: path} of `NAME=PATH,NAME=PATH`."""
    parts = [part.partition("=") for part in (text or "").split(",") if part]
    if wrong := [name for name, equals, path in parts if not (equals and path)]:
        raise UserError(f"--inputs {', '.join(wrong)}: write NAME=PATH,NAME=PATH.")
    return {name: path for name, _, path in parts}


def _options(parser: argparse.ArgumentParser) -> None:
    takes_config(parser, required=False)
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="print the plan (blocks, passes, bytes, memory) and stop",
    )
    parser.add_argument(
        "--manifest",
        type=any_path,
        metavar="FILE",
        help="repeat the merge it records",
    )
    parser.add_argument(
        "--output", metavar="DIR", help="where to, with --manifest only"
    )
    parser.add_argument(
        "--inputs",
        metavar="NAME=PATH,…",
        help="where models are now that --manifest has elsewhere; the base is `base`",
    )
    parser.add_argument(
        "--method_file",
        metavar="FILE.py",
        help="the file of methods that --manifest was merged with; it is run",
    )
    takes_processes(parser)


COMMAND = Command(
    "merge checkpoints of any size into a new one, resumably",
    """\
    Merge checkpoints on disk, safetensors or Orbax folders, into a new one: block
    by block under a memory budget, with statistics over the whole model, and the
    same bytes for any budget and any number of devices and processes. Stop it at
    any time; the same command continues. The output appears when it is complete.

    Of Orbax, RUN (a CheckpointManager's folder) is its latest step, RUN/100 another,
    and PATH#params a part of a tree; of a training's state the params are taken.
    RUN@100,200, RUN@last:10 and RUN@* are steps of a run of any trainer, in order.

    A YAML file for mergekit runs as it is (the values of merge/mergekit).

    A LoRA adapter, as PEFT saves it, is an expert on the base beside it, or a model as
    BASE+ADAPTER; --config.space (below) merges adapters into an adapter.

    examples:
      merging merge --config merge/ties --config.base=BASE \\
          --config.experts=EXPERT1,EXPERT2 --config.output=MERGED
      merging merge --config merge/ties --config.base=BASE \\
          --config.experts=EXPERT1,EXPERT2 --config.output=MERGED --dry_run
      merging merge --config merge/core_space \\
          --config.experts=ADAPTER1,ADAPTER2 --config.output=ADAPTER
      merging merge --config mergekit.yml --config.output=MERGED
      merging merge --config merge/run --config.experts=RUN@last:10 \\
          --config.schedule=ema --config.output=MERGED
      merging merge --manifest MERGED/manifest.json --output AGAIN
      merging merge --manifest MERGED/manifest.json --output AGAIN \\
          --inputs base=BASE,EXPERT1=/elsewhere/EXPERT1
    """,
    _options,
    _run,
    resumable=True,
    configs=("merge",),
    example="merge/ties",
)
