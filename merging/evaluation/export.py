"""The results as lm-evaluation-harness writes them, for what reads those files.

Its names, where it finds the same quantity: acc for accuracy, acc_norm per character,
acc_mutual_info unconditional; and em, as its coqa and drop say, for exact match after
SQuAD's normalisation: what it calls exact_match normalises nothing. And its scale: BLEU
out of 100, all else out of 1. What says that it ran itself, such as its version, is
left out. Beside results_TIME.json there is samples_TASK_TIME.jsonl of each task, with a
line for each example under each prompt template (see `samples`).
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from merging.evaluation import samples
from merging.evaluation.scores import DatasetScore, Record
from merging.evaluation.tables import Value
from merging.runtime import storage
from merging.runtime.storage import Folder

FOLDER = "lm_eval"
_NAMES = {
    "accuracy": "acc",
    "accuracy_norm": "acc_norm",
    "accuracy_unconditional": "acc_mutual_info",
    "exact_match": "em",
    "rouge_1": "rouge1",
    "rouge_2": "rouge2",
    "rouge_l": "rougeL",
}


def write(
    workdir: Folder,
    records: Sequence[Record],
    values: Sequence[Mapping[str, Value]],
    *,
    model: str,
    suite: str,
    split: str,
    context: int,
    chat_template: str,
    config: Mapping[str, Any],
    examples: Callable[[str], Iterable[samples.Sample]] | None = None,
) -> Folder:
    """Write results_TIME.json in the place of an earlier one, and return its path.

    Args:
      workdir: where.
      records: of the datasets.
      values: {metric: value} of each.
      model: the checkpoint's place.
      suite, split: on what.
      context: the most tokens that the model was given.
      chat_template: that prompts stood in; "" for none.
      config: what else the harness calls the config.
      examples: the samples of a dataset by its name; no file of them by default.
    """
    name = _folder(model)
    now = datetime.now(UTC)
    folder = workdir / FOLDER / name
    time = f"{now:%Y-%m-%dT%H-%M-%S.%f}"
    path = folder / f"results_{time}.json"
    earlier = [*folder.glob("results_*.json"), *folder.glob("samples_*.jsonl")]
    by_task: dict[str, dict[str, Any]] = {"task_hashes": {}}
    for record, metrics in zip(records, values, strict=True):
        task = f"{suite}_{record.score.dataset}"
        for key, value in _facts(task, record.score, metrics, split).items():
            by_task.setdefault(key, {})[task] = value
        if examples is not None:
            file = folder / f"samples_{task}_{time}.jsonl"
            found = samples.write(file, examples(record.score.dataset), _named)
            by_task["task_hashes"][task] = found
    found = by_task | {
        "config": {"model": "merging", **config},
        "git_hash": records[0].git_revision,
        "model_source": "merging",
        "system_instruction": None,
        "system_instruction_sha": None,
        "fewshot_as_multiturn": False,
        "model_name": model,
        "model_name_sanitized": name,
        "max_length": context,
        "chat_template": chat_template or None,
        "chat_template_sha": _sha(chat_template) if chat_template else None,
        "total_evaluation_time_seconds": str(sum(r.seconds for r in records)),
        "date": now.timestamp(),
    }
    storage.write_bytes(path, (json.dumps(found, indent=2) + "\n").encode())
    for old in earlier:
        old.unlink()
    return path


def _named(metric: str) -> tuple[str, int]:
    """Return a metric's name and scale in the harness."""
    return _NAMES.get(metric, metric), 100 if metric == "bleu" else 1


def _folder(model: str) -> str:
    """Return a name for a checkpoint's files; that of no hidden folder."""
    return re.sub(r"[^\w.-]+", "__", model).strip("._") or Path(model).resolve().name


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _facts(
    task: str, score: DatasetScore, values: Mapping[str, Value], split: str
) -> dict[str, Any]:
    """Return what the file says of a task, by the section that says it."""
    return {
        "results": _results(task, score.examples, values),
        "group_subtasks": [],
        "configs": {
            "task": task,
            "tag": [score.category, score.split],
            "dataset_name": score.dataset,
            "test_split": split,
            "num_fewshot": 0,
        },
        "versions": 1,
        "n-shot": 0,
        "higher_is_better": {_named(metric)[0]: True for metric in values},
        "n-samples": {"original": score.examples, "effective": score.examples},
    }


def _results(task: str, examples: int, values: Mapping[str, Value]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": task,
        "alias": task,
        "sample_len": examples,
    }
    for metric, value in values.items():
        name, scale = _named(metric)
        found[f"{name},none"] = scale * value.value
        found[f"{name}_stderr,none"] = scale * value.interval.deviation
    return found
