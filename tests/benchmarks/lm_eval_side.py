"""The harness's half of scoring_speed.py, run by a Python that has lm-eval and PyTorch.

  VENV/bin/python lm_eval_side.py MODEL TASKS_FOLDER OUT.json BATCH TASK…

Drives lm-evaluation-harness through its public interface: its HF backend on the CPU in
float32, and the tasks whose YAML files lie in the folder. Writes the seconds of each
stage and every choice's log-likelihood. This file needs nothing of ours.
"""

import json
import os
import sys
import time
from pathlib import Path

BEGIN = time.perf_counter()
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

import lm_eval  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402


def main() -> None:
    """Evaluate and write what was found."""
    model, folder, out, batch, *tasks = sys.argv[1:]
    imported = time.perf_counter()
    lm = HFLM(pretrained=model, dtype="float32", device="cpu", batch_size=int(batch))
    manager = TaskManager(include_path=folder, include_defaults=False)
    loaded = time.perf_counter()
    found = lm_eval.simple_evaluate(
        model=lm, tasks=tasks, task_manager=manager, log_samples=True, bootstrap_iters=0
    )
    done = time.perf_counter()
    record = {
        "versions": {
            "lm_eval": lm_eval.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "seconds": {
            "import": imported - BEGIN,
            "load": loaded - imported,
            "evaluate": done - loaded,
        },
        "accuracy": {task: found["results"][task]["acc,none"] for task in tasks},
        "accuracy_norm": {
            task: found["results"][task]["acc_norm,none"] for task in tasks
        },
        "log_likelihoods": {
            task: [
                [answer[0] for answer in sample["filtered_resps"]]
                for sample in sorted(found["samples"][task], key=lambda s: s["doc_id"])
            ]
            for task in tasks
        },
    }
    Path(out).write_text(json.dumps(record))


if __name__ == "__main__":
    main()
