"""What `merging evaluate` does with a config of lm-evaluation-harness's tasks.

The harness makes the requests and the metrics, and writes the files that its readers
know; the model is `merging.evaluation.lm_eval`'s. It is imported only here and there.
"""

import contextlib
import difflib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from merging.runtime import config_keys, processes, storage
from merging.runtime.errors import UserError
from merging.runtime.storage import Folder

_KEYS = {
    "checkpoint": str,
    "tokenizer": "",
    "tasks": tuple,
    "include_path": "",
    "num_fewshot": -1,
    "limit": 0,
    "chat": False,
    "system_instruction": "",
    "max_new_tokens": 0,
    "samples": True,
    "bootstrap_iters": 100_000,
    "batch_size": 32,
    "context": 0,
    "dtype": "",
    "mesh": ConfigDict(dict(data=-1, fsdp=1, tensor=1)),
}


def run(config: Any, workdir: Folder) -> None:
    """Evaluate what a config names, and print the harness's table.

    Raises:
      UserError: the harness is not installed; a config, checkpoint, tokenizer or task
        that can't be used.
      Preempted: the system asked to stop; nothing is kept.
    """
    config = config_keys.completed(
        *(config, _KEYS, "merging evaluate", "evaluate/lm_eval"), remote=("checkpoint",)
    )
    workdir = storage.place(workdir, "--workdir")
    names = [name for name in config.tasks if name]
    if not config.checkpoint:
        raise UserError("no checkpoint to evaluate: --config.checkpoint=DIR")
    if not names:
        raise UserError("no tasks: --config.tasks=hellaswag,arc_easy")
    _require_installed()
    processes.initialize(workdir / "logs")
    from merging.evaluation import lm_eval_parsing

    here = storage.scratch(workdir)
    with lm_eval_parsing.once():
        manager, chosen = _tasks(config.include_path, names)
        tracker = _tracker(here) if processes.is_first() else None
        found = _evaluated(config, chosen, manager, tracker)
    if tracker is not None:
        written, text = _published(found, tracker, here, config.samples)
        storage.keep(workdir, written.parent)
        print(f"{text}\nResults: {workdir / str(written.relative_to(here))}")
    processes.barrier("the results are written")


def _require_installed() -> None:
    try:
        # Adds our model to the harness's.
        import merging.evaluation.lm_eval  # noqa: F401
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "merging":
            raise
        raise UserError(
            f"lm-evaluation-harness can't be imported (no module {error.name}): pip "
            "install 'merging[lm-eval]'"
        ) from None


def _tasks(include_path: str, names: Sequence[str]) -> tuple[Any, list[Any]]:
    """Return what knows the tasks, and those that names and patterns mean, loaded.

    Raises:
      UserError: there is no such folder or task, or its data can't be had.
    """
    from lm_eval.tasks import TaskManager

    if include_path and not Path(include_path).is_dir():
        raise UserError(f"include_path {include_path}: there is no such folder.")
    manager, found = None, {name: [] for name in names}
    # To list the harness's own thousands takes seconds the first time.
    for defaults in (False, True)[not include_path :]:
        if not all(found.values()):
            manager = TaskManager(
                include_path=include_path or None, include_defaults=defaults
            )
            found = {name: manager.match_tasks([name]) for name in names}
    for name in (name for name, matches in found.items() if not matches):
        close = difflib.get_close_matches(name, manager.all_tasks)
        raise UserError(
            f"unknown task of lm-evaluation-harness {name!r}"
            + (f": did you mean {' or '.join(close)}?" if close else ".")
            + " `lm_eval ls tasks` lists them all."
        )
    chosen = dict.fromkeys(task for matches in found.values() for task in matches)
    return manager, [one for name in chosen for one in _loaded(manager, name)]


def _loaded(manager: Any, name: str) -> list[Any]:
    """Return a group, or the tasks of a tag, or a task, with its data."""
    try:
        found = manager.load([name])
    except Exception as error:  # of the Hub, a network, a stranger's files: any
        first = str(error).strip().partition("\n")[0][:300]
        raise UserError(
            f"task {name} can't be loaded ({type(error).__name__}: {first}). Its data "
            "come from the Hugging Face Hub, or from where its YAML file says "
            "(include_path)."
        ) from error
    group = found["groups"].get(name)
    return list(found["tasks"].values()) if group is None else [group]


def _evaluated(
    config: Any, chosen: list[Any], manager: Any, tracker: Any
) -> dict[str, Any]:
    """Return what the harness finds."""
    import lm_eval

    from merging.evaluation.lm_eval import NAME

    model = {
        "pretrained": config.checkpoint,
        "tokenizer": config.tokenizer,
        "mesh": "x".join(str(config.mesh[axis]) for axis in ("data", "fsdp", "tensor")),
        "dtype": config.dtype,
        "max_length": config.context,
    }
    generating = {"max_gen_toks": config.max_new_tokens, "do_sample": False}
    with _quiet():
        return lm_eval.simple_evaluate(
            model=NAME,
            model_args={key: value for key, value in model.items() if value},
            tasks=chosen,
            task_manager=manager,
            num_fewshot=None if config.num_fewshot < 0 else config.num_fewshot,
            batch_size=config.batch_size,
            limit=config.limit or None,
            bootstrap_iters=config.bootstrap_iters,
            log_samples=config.samples,
            evaluation_tracker=tracker,
            system_instruction=config.system_instruction or None,
            apply_chat_template=config.chat,
            fewshot_as_multiturn=config.chat,
            gen_kwargs=generating if config.max_new_tokens else None,
        )


def _tracker(workdir: Path) -> Any:
    from lm_eval.loggers import EvaluationTracker

    return EvaluationTracker(output_path=str(workdir))


def _published(
    found: dict[str, Any], tracker: Any, workdir: Path, with_samples: bool
) -> tuple[Path, str]:
    """Write the harness's files, and return that of the results, and its tables."""
    from lm_eval.utils import make_table

    samples = found.pop("samples", {}) if with_samples else {}
    before = set(workdir.glob("*/results_*.json"))
    tracker.save_results_aggregated(results=found, samples=samples or None)
    # It only warns of what it could not write.
    written = set(workdir.glob("*/results_*.json")) - before
    if len(written) != 1:
        raise UserError(f"the harness could not write its results into {workdir}")
    for task, rows in samples.items():
        tracker.save_results_samples(task_name=task, samples=rows)
    tables = [make_table(found)]
    if found.get("groups"):
        tables.append(make_table(found, "groups"))
    return written.pop(), "\n".join(tables)


@contextlib.contextmanager
def _quiet() -> Any:
    """Have the harness warn, and not tell of every step."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(os.environ.get("LMEVAL_LOG_LEVEL", "WARNING").upper())
    try:
        yield
    finally:
        logger.setLevel(level)
