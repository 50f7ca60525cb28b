"""What evaluating costs, beside lm-evaluation-harness, and whether both say the same.

  python tests/benchmarks/scoring_speed.py --workdir scoring \\
      --lm_eval_python VENV/bin/python
  python tests/benchmarks/scoring_speed.py --workdir scoring \\
      --lm_eval_python VENV/bin/python --model SMOLLM2 \\
      --tasks words --items 320 --lm_eval_batch 16

A random Llama, a tokenizer trained on the tasks' texts, and five made-up tasks in JSON
lines: short answers to long passages, long endings, many topics, yes or no, and one of
four words, each a single token, which the harness too scores in one row. `merging
evaluate` and the harness (HF backend) each evaluate all of them in float32 on the CPU,
from the same files, in a process of their own, in turns. Seconds are those of the whole
process, and of the evaluation without imports and reading the model; ours include
compiling. Holds if ours is at least three times as fast, chooses the same on 99.5 %
of the items, and no log-likelihood differs by more than 1e-3.

The harness's Python needs: pip install torch 'lm-eval[hf]'
"""

import argparse
import functools
import json
import random
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import measuring
import numpy as np
from measuring import Command, Usage
from merge_speed import table

sys.path.insert(0, str(Path(__file__).parents[1]))

import scored_models  # noqa: E402

from merging import evaluation, models, tasks  # noqa: E402
from merging.models import hf  # noqa: E402
from merging.models.hf.convert import convert  # noqa: E402

_ROOT = Path(__file__).parents[2]
_CONFIG = _ROOT / "configs/evaluate/jsonl.py"
_SIDE = Path(__file__).with_name("lm_eval_side.py")
SIZES = {
    "tiny": dict(width=128, layers=4, heads=4),
    "mid": dict(width=512, layers=8, heads=8),
}
TASKS = ("passages", "endings", "topics", "yes_no", "words")
NEAR, SAME, FASTER = 1e-3, 0.995, 3.0
_WORDS = "water house music paper table night stone river glass horse".split()
_SYLLABLES = "ka lo mi ren tu sol ba ver ni dor pe als".split()


def main() -> int:
    """Print a table, and return 0 if what must hold held."""
    options = _parser().parse_args()
    workdir = options.workdir.resolve()
    print(measuring.machine(), flush=True)
    files = write_tasks(workdir / "tasks", options.tasks, options.items)
    rows = []
    for size in ["given"] if options.model else options.sizes:
        model = options.model or make_model(workdir / size, files, size)
        rows += _contest(options, workdir / size, model, files, size)
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if all(row["holds"] for row in rows) else 1


def write_tasks(folder: Path, names: Sequence[str], items: int) -> dict[str, Path]:
    """Write tasks as JSON lines, and each as a YAML file for the harness."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    files = {}
    for task in names:
        files[task] = folder / f"{task}.jsonl"
        lines = [json.dumps(_item(task, i)) for i in range(items)]
        files[task].write_text("\n".join(lines) + "\n")
        yaml = {
            "task": task,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(files[task])}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{inputs}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{label}}",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        }
        # JSON is YAML.
        (folder / f"{task}.yaml").write_text(json.dumps(yaml))
    return files


def make_model(folder: Path, files: Mapping[str, Path], size: str) -> Path:
    """Write a random Llama as transformers reads it, with a tokenizer of its own."""
    shutil.rmtree(folder, ignore_errors=True)
    texts = [file.read_text() for file in files.values()]
    tokenizer = scored_models.byte_level(texts, 2048)
    made = scored_models.write(
        folder / "stacked", tokenizer, context=1024, **SIZES[size]
    )
    convert(str(made), str(folder / "model"), format="safetensors")
    return folder / "model"


def _contest(options, folder: Path, model: Path, files, size: str) -> list[dict]:
    """Run both in turns, and return a row for each batch size of the harness.

    Of several runs, the quickest whole process of either side is reported.
    """
    ours: list[tuple[Usage, float]] = []
    theirs: dict[int, list[tuple[Usage, Any]]] = {b: [] for b in options.lm_eval_batch}
    for repeat in range(options.repeats):
        mine = _ours(options, folder / "ours", model, files)
        ours.append((mine, _seconds(folder / "ours")))
        for batch in options.lm_eval_batch:
            out = folder / f"theirs_{batch}.json"
            other = _theirs(options, model, files, out, batch)
            theirs[batch].append((other, json.loads(out.read_text())))
            print(
                f"{size}, {repeat + 1} of {options.repeats}: ours"
                f" {mine.wall:.1f} s ({mine.cpu:.1f} of CPU), theirs at {batch}"
                f" {other.wall:.1f} s ({other.cpu:.1f})",
                flush=True,
            )
    mine, scoring = min(ours, key=lambda run: run[0].wall)
    found = _log_likelihoods(options, model, files)
    rows = []
    for batch, runs in theirs.items():
        best, record = min(runs, key=lambda run: run[0].wall)
        agreed = _agreement(found, record["log_likelihoods"])
        evaluate = record["seconds"]["evaluate"]
        rows.append(
            {
                "size": size,
                "harness batch": batch,
                "ours s": round(mine.wall, 1),
                "harness s": round(best.wall, 1),
                "times faster": round(best.wall / mine.wall, 2),
                "ours, evaluating s": round(scoring, 1),
                "harness, evaluating s": round(evaluate, 1),
                "times": round(evaluate / scoring, 2),
                "same choice": round(agreed["same"], 4),
                "largest difference": f"{agreed['largest']:.1e}",
                "holds": best.wall / mine.wall >= FASTER
                and agreed["same"] >= SAME
                and agreed["largest"] <= NEAR,
            }
        )
    return rows


def _ours(options, workdir: Path, model: Path, files) -> Usage:
    shutil.rmtree(workdir, ignore_errors=True)
    paths = ",".join(str(path) for path in files.values())
    command = Command(
        [
            *(sys.executable, "-m", "merging", "evaluate"),
            *("--config", str(_CONFIG), "--workdir", str(workdir)),
            f"--config.checkpoint={model}",
            f"--config.suite.files={paths}",
            f"--config.batch_size={options.batch}",
            "--config.dtype=float32",
        ],
        {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(_ROOT)},
    )
    return _run(command, workdir.with_name("ours_log"))


def _theirs(options, model: Path, files, out: Path, batch: int) -> Usage:
    folder = next(iter(files.values())).parent
    arguments = [str(options.lm_eval_python), str(_SIDE), str(model), str(folder)]
    command = Command(
        [*arguments, str(out), str(batch), *files],
        {"HF_HOME": str(out.with_name("hf_home")), "CUDA_VISIBLE_DEVICES": ""},
    )
    return _run(command, out.with_suffix(""))


def _run(command: Command, logs: Path) -> Usage:
    (usage,) = measuring.measure([command], logs, interval=0.5)
    if usage.status:
        print(usage.output[-4000:], file=sys.stderr)
        raise SystemExit(f"{command.arguments[:4]} ended with {usage.status}")
    return usage


def _seconds(workdir: Path) -> float:
    records = (workdir / "tasks").glob("*-*.json")
    return sum(json.loads(record.read_text())["seconds"] for record in records)


def _log_likelihoods(options, model: Path, files) -> dict[str, list[list[float]]]:
    """Return ours of every choice, as the command finds them on its way."""
    paths = tuple(str(path) for path in files.values())
    suite = tasks.suite("jsonl", files=paths, chat=False, tokenizer=str(model))
    decoder, params = hf.load(model, dtype="float32")
    requests = evaluation.requests(
        suite, "test", context=decoder.max_length, vocab_size=decoder.vocab_size
    )
    batches = evaluation.prepare(requests, batch_size=options.batch)
    print(f"padding {batches.padding:.1%} in {len(batches.batches)} batches")
    bound = (functools.partial(call, params) for call in models.predictor(decoder))
    predictions = evaluation.predict(batches, models.Predictor(*bound))
    sets = [one.eval_set for one in requests.sets]
    return {
        one.dataset: [
            found.outputs[one.groups == i].tolist() for i in range(one.examples)
        ]
        for one, found in zip(sets, predictions, strict=True)
    }


def _agreement(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, float]:
    same, largest = [], 0.0
    for task, items in theirs.items():
        for mine, other in zip(ours[task], items, strict=True):
            largest = max(largest, float(np.abs(np.subtract(mine, other)).max()))
            same.append(int(np.argmax(mine)) == int(np.argmax(other)))
    return {"same": float(np.mean(same)), "largest": largest}


def _item(task: str, number: int) -> dict[str, Any]:
    rng = random.Random(f"{task}/{number}")
    words, answers, per_answer = {
        "passages": ((80, 200), 4, (1, 3)),
        "endings": ((20, 60), 4, (10, 25)),
        "topics": ((30, 90), 14, (1, 2)),
        "yes_no": ((10, 120), 2, (1, 1)),
        "words": ((10, 120), 4, (1, 1)),
    }[task]
    prompt = f"{_text(rng, *words).capitalize()}.\nAnswer:"
    choices: list[str] = ["yes", "no"] if task == "yes_no" else []
    if task == "words":
        choices = rng.sample(_WORDS, answers)
    while len(choices) < answers:
        if (choice := _text(rng, *per_answer)) not in choices:
            choices.append(choice)
    of = {"dataset": task, "category": "made_up", "split": "held_out"}
    return of | {"inputs": prompt, "choices": choices, "label": rng.randrange(answers)}


def _text(rng: random.Random, least: int, most: int) -> str:
    """Return words of few syllables, short ones more often."""
    sizes = rng.choices((1, 2, 3), (5, 3, 1), k=rng.randint(least, most))
    return " ".join("".join(rng.choices(_SYLLABLES, k=size)) for size in sizes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--lm_eval_python", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="a checkpoint of your own")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--items", type=int, default=300, help="of each task")
    parser.add_argument("--batch", type=int, default=16, help="prompts in a call")
    parser.add_argument("--lm_eval_batch", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
