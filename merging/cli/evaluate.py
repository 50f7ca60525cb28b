"""`merging evaluate`: a checkpoint's scores on a suite."""

import argparse
import shlex

from merging.cli.command import (
    Command,
    any_path,
    config_and_workdir,
    print_for_a_pipe,
    takes_config_and_workdir,
    takes_processes,
)
from merging.runtime import compilations
from merging.runtime.errors import UserError


def _run(arguments: argparse.Namespace) -> int:
    if arguments.compare:
        if arguments.config or arguments.workdir:
            raise UserError(
                "--compare A B stands alone, without --config or --workdir."
            )
        return _compare(arguments)
    if arguments.out:
        raise UserError("--out goes with --compare; a model's page is in its workdir.")
    if not arguments.config:
        raise UserError(
            "merging evaluate needs --config FILE.py, or --compare A B with the "
            "workdirs of two evaluations."
        )
    config, workdir = config_and_workdir(arguments)
    compilations.keep()
    from merging.runtime import processes

    if "tasks" in config:  # the harness's, and so are its results
        from merging.evaluation import harness

        harness.run(config, workdir)
        return 0
    from merging.evaluation import bootstrap, store
    from merging.evaluation.run import run
    from merging.report import document, evaluation_page

    run(config, workdir)
    if processes.is_first():
        command = _command(arguments, workdir)
        store.note(workdir, config=config.to_dict(), command=command)
        how = bootstrap.Options(**config.get("bootstrap", {}))
        made = evaluation_page.evaluation(workdir, how)
        page = document.write(made, workdir / "report")
        print(f"Report: {page}")
    return 0


def _command(arguments: argparse.Namespace, workdir: object) -> str:
    """Return the command that was given, for the page."""
    words = ["merging", "evaluate", "--config", arguments.config]
    words += [f"--config.{key}={text}" for key, text in arguments.overrides.items()]
    return shlex.join([*words, "--workdir", str(workdir)])


def _compare(arguments: argparse.Namespace) -> int:
    from merging.evaluation.comparison import compare

    text = compare(*arguments.compare)
    if arguments.out:
        from merging.report import document, evaluation_page

        made = evaluation_page.compared(*arguments.compare)
        page = document.write(made, arguments.out)
        text += f"\nReport: {page}"
    print_for_a_pipe(text)
    return 0


def _options(parser: argparse.ArgumentParser) -> None:
    takes_config_and_workdir(parser, required=False)
    parser.add_argument(
        "--compare",
        type=any_path,
        nargs=2,
        metavar=("A", "B"),
        help="the workdirs of two evaluations: print both values, the differences and"
        " their paired bootstrap intervals",
    )
    parser.add_argument(
        "--out",
        type=any_path,
        metavar="DIR",
        help="with --compare: write a page of the comparison there as well",
    )
    takes_processes(parser)


COMMAND = Command(
    "score a checkpoint on a suite of tasks, or compare two",
    """\
    Score any checkpoint of a known family, safetensors or Orbax with its config.json,
    on a suite, in its own tokens. Every finished dataset is kept in the workdir: stop
    it at any time, and the same command continues. Prints each dataset's value, mean
    and spread over its prompt templates, with a bootstrap interval; writes a page that
    shows them, result rows for `merging report`, and a results file for readers of
    lm-evaluation-harness. With --config evaluate/lm_eval the tasks are that harness's
    own, few-shot and per-sample logs too (pip install 'merging[lm-eval]').

    examples:
      merging evaluate --config evaluate/miniworld \\
          --config.checkpoint=MODEL --workdir scores
      merging evaluate --config evaluate/miniworld \\
          --config.checkpoint=MERGED --config.labels.method=ties \\
          --config.base_results=scores --workdir merged_scores
      merging evaluate --compare scores merged_scores --out comparison
      merging evaluate --config evaluate/lm_eval --config.checkpoint=MODEL \\
          --config.tasks=hellaswag,arc_easy --workdir harness_scores
    """,
    _options,
    _run,
    resumable=True,
    configs=("evaluate",),
    example="evaluate/miniworld",
)
