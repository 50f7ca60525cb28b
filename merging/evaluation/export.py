"""The results as lm-evaluation-harness writes them, for what reads those files.

Its names: acc for accuracy, acc_norm per character, acc_mutual_info unconditional. And
its scale: BLEU out of 100, all else out of 1.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from merging.evaluation.store import Record
from merging.evaluation.tables import Value
from merging.runtime import storage

FOLDER = "lm_eval"
_NAMES = {
    "accuracy": "acc",
    "accuracy_norm": "acc_norm",
    "accuracy_unconditional": "acc_mutual_info",
    "rouge_1": "rouge1",
    "rouge_2": "rouge2",
    "rouge_l": "rougeL",
}


class Run(NamedTuple):
    """What was evaluated, and how.

    Attributes:
      model: the checkpoint's place.
      parameters: how many it has.
      suite, split: on what.
      dtype, batch_size, count, context, resamples: as `merging evaluate` has them.
    """

    model: str
    parameters: int
    suite: str
    split: str
    dtype: str | None
    batch_size: int
    count: int | None
    context: int
    resamples: int


def write(
    workdir: Path,
    run: Run,
    records: Sequence[Record],
    values: Sequence[Mapping[str, Value]],
) -> Path:
    """Write results_TIME.json in the place of an earlier one, and return its path.

    Args:
      workdir: where.
      run: what was evaluated.
      records: of the datasets.
      values: their metrics, from `tables.values`.
    """
    name = re.sub(r"[^\w.-]+", "__", run.model.strip("/"))
    now = datetime.now(UTC)
    folder = workdir / FOLDER / name
    path = folder / f"results_{now:%Y-%m-%dT%H-%M-%S.%f}.json"
    earlier = list(folder.glob("results_*.json"))
    record = _record(run, name, records, values) | {"date": now.timestamp()}
    storage.write_bytes(path, (json.dumps(record, indent=2) + "\n").encode())
    for old in earlier:
        old.unlink()
    return path


def _record(run: Run, name: str, records: Sequence[Record], values) -> dict[str, Any]:
    scores = {f"{run.suite}_{r.score.dataset}": r.score for r in records}
    metrics = dict(zip(scores, values, strict=True))
    return {
        "results": {t: _results(t, s.examples, metrics[t]) for t, s in scores.items()},
        "group_subtasks": {task: [] for task in scores},
        "configs": {
            task: {
                "task": task,
                "tag": [score.category, score.split],
                "dataset_name": score.dataset,
                "test_split": run.split,
                "num_fewshot": 0,
            }
            for task, score in scores.items()
        },
        "versions": {task: 1 for task in scores},
        "n-shot": {task: 0 for task in scores},
        "higher_is_better": {
            task: {_NAMES.get(metric, metric): True for metric in metrics[task]}
            for task in scores
        },
        "n-samples": {
            task: {"original": score.examples, "effective": score.examples}
            for task, score in scores.items()
        },
        "config": {
            "model": "merging",
            "model_args": {"pretrained": run.model, "dtype": run.dtype},
            "model_num_parameters": run.parameters,
            "batch_size": str(run.batch_size),
            "limit": run.count,
            "bootstrap_iters": run.resamples,
        },
        "git_hash": records[0].git_revision,
        "model_source": "merging",
        "model_name": run.model,
        "model_name_sanitized": name,
        "max_length": run.context,
        "total_evaluation_time_seconds": str(sum(r.seconds for r in records)),
    }


def _results(task: str, examples: int, values: Mapping[str, Value]) -> dict[str, Any]:
    found: dict[str, Any] = {"alias": task, "sample_len": examples}
    for metric, value in values.items():
        name, scale = _NAMES.get(metric, metric), 100 if metric == "bleu" else 1
        found[f"{name},none"] = scale * value.value
        found[f"{name}_stderr,none"] = scale * value.interval.deviation
    return found
