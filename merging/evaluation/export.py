"""The results as lm-evaluation-harness writes them, for what reads those files.

Its names: acc for accuracy, acc_norm per character, acc_mutual_info unconditional. And
its scale: BLEU out of 100, all else out of 1.
"""

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from merging.evaluation.model import Opened, context
from merging.evaluation.settings import Settings
from merging.evaluation.tables import Summary
from merging.runtime.storage import write_bytes

FOLDER = "lm_eval"
_NAMES = {
    "accuracy": "acc",
    "accuracy_norm": "acc_norm",
    "accuracy_unconditional": "acc_mutual_info",
    "rouge_1": "rouge1",
    "rouge_2": "rouge2",
    "rouge_l": "rougeL",
}


def write(
    workdir: Path, settings: Settings, model: Opened, summaries: Sequence[Summary]
) -> Path:
    """Write results_TIME.json in the place of an earlier one, and return its path."""
    name = re.sub(r"[^\w.-]+", "__", model.uri.strip("/"))
    now = datetime.now(UTC)
    folder = workdir / FOLDER / name
    path = folder / f"results_{now:%Y-%m-%dT%H-%M-%S.%f}.json"
    earlier = list(folder.glob("results_*.json"))
    record = _record(settings, model, name, summaries) | {"date": now.timestamp()}
    write_bytes(path, (json.dumps(record, indent=2) + "\n").encode())
    for old in earlier:
        old.unlink()
    return path


def _record(
    settings: Settings, model: Opened, name: str, summaries: Sequence[Summary]
) -> dict[str, Any]:
    tasks = {f"{settings.suite}_{s.record['dataset']}": s for s in summaries}
    return {
        "results": {task: _results(task, s) for task, s in tasks.items()},
        "group_subtasks": {task: [] for task in tasks},
        "configs": {
            task: {
                "task": task,
                "tag": [s.record["category"], s.record["split"]],
                "dataset_name": s.record["dataset"],
                "test_split": settings.split,
                "num_fewshot": 0,
            }
            for task, s in tasks.items()
        },
        "versions": {task: 1 for task in tasks},
        "n-shot": {task: 0 for task in tasks},
        "higher_is_better": {
            task: {_NAMES.get(m, m): True for m in s.values}
            for task, s in tasks.items()
        },
        "n-samples": {
            task: {"original": s.examples, "effective": s.examples}
            for task, s in tasks.items()
        },
        "config": {
            "model": "merging",
            "model_args": {"pretrained": model.uri, "dtype": settings.dtype},
            "model_num_parameters": model.parameters,
            "batch_size": str(settings.batch_size),
            "limit": settings.count,
            "bootstrap_iters": settings.resamples,
        },
        "git_hash": summaries[0].record["git_revision"],
        "model_source": "merging",
        "model_name": model.uri,
        "model_name_sanitized": name,
        "max_length": context(settings, model),
        "total_evaluation_time_seconds": str(
            sum(s.record["seconds"] for s in summaries)
        ),
    }


def _results(task: str, summary: Summary) -> dict[str, Any]:
    found: dict[str, Any] = {"alias": task, "sample_len": summary.examples}
    for metric, value in summary.values.items():
        name, scale = _NAMES.get(metric, metric), 100 if metric == "bleu" else 1
        found[f"{name},none"] = scale * value.value
        found[f"{name}_stderr,none"] = scale * value.interval.deviation
    return found
