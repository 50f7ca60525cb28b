"""Our model in lm-evaluation-harness beside its HF backend: answers and time.

  python tests/benchmarks/lm_eval_parity.py --workdir parity \\
      --ours VENV_WITH_JAX/bin/python --theirs VENV_WITH_TORCH/bin/python
  python tests/benchmarks/lm_eval_parity.py … --model SMOLLM2 --items 20 --batches 8

A random Llama with a tokenizer trained on the tasks' texts, or a model that is given,
and local tasks of each kind: multiple choice (short answers to long passages, long
endings, few-shot), texts to generate (with stops of one and of several letters), and a
rolling log-likelihood. Both sides are the harness's own program on the same YAML files,
in processes of their own, in turns, on the CPU in float32, as a given model must be.
Holds if both choose the same on 99.5 % of the items, generate the same texts on 99 %,
agree on perplexity to 1e-4, and ours is at least three times as fast (whole processes,
imports and compilations included; the backend at the best of its batch sizes). CPU
seconds stand beside: on a shared machine they say more.

VENV_WITH_JAX: pip install '.[lm-eval]'.  VENV_WITH_TORCH: pip install 'lm-eval[hf]'
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import measuring  # noqa: E402
import scored_models  # noqa: E402
import scoring_speed  # noqa: E402
from merge_speed import table  # noqa: E402

from merging.models.hf.convert import convert  # noqa: E402

_ROOT = Path(__file__).parents[2]
SAME_CHOICE, SAME_TEXT, NEAR, FASTER = 0.995, 0.99, 1e-4, 3.0
STOPS = {"lines": ["\n"], "letters": ["ka lo", "ren"]}


class Seconds(NamedTuple):
    """What a process took."""

    wall: float
    cpu: float


def main() -> int:
    """Print a table, and return 0 if what must hold held."""
    options = _parser().parse_args()
    workdir = options.workdir.resolve()
    print(measuring.machine(), flush=True)
    names = write_tasks(workdir / "tasks", options.items)
    rows = []
    for size in ["given"] if options.model else options.sizes:
        (workdir / size).mkdir(exist_ok=True)
        model = options.model or make_model(workdir / size, workdir / "tasks", size)
        rows.append(_contest(options, workdir / size, model, workdir / "tasks", names))
        rows[-1] = {"size": size} | rows[-1]
        print(table(rows), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if all(row["holds"] for row in rows) else 1


def write_tasks(folder: Path, items: int) -> list[str]:
    """Write every task as JSON lines and a YAML file; return their names."""
    scoring_speed.write_tasks(folder, scoring_speed.TASKS, items)
    names = list(scoring_speed.TASKS)
    few = json.loads((folder / "topics.yaml").read_text())
    few |= {"task": "topics_5_shot", "num_fewshot": 5, "fewshot_split": "test"}
    few["fewshot_config"] = {"sampler": "first_n"}
    _write(folder, few)
    for name, stops in STOPS.items():
        task = _of(folder / "passages.jsonl", name) | {
            "output_type": "generate_until",
            "doc_to_text": "{{inputs}}",
            "doc_to_target": "{{choices[label]}}",
            "generation_kwargs": {"until": stops, "max_gen_toks": 48},
            "metric_list": [{"metric": "exact_match"}],
        }
        _write(folder, task)
    _write(
        folder,
        _of(folder / "endings.jsonl", "rolling")
        | {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{inputs}} {{choices | join(' ')}}",
            "metric_list": [{"metric": "word_perplexity"}],
        },
    )
    return [*names, "topics_5_shot", *STOPS, "rolling"]


def make_model(folder: Path, tasks: Path, size: str) -> Path:
    """Write a random Llama as transformers reads it, with a tokenizer of its own."""
    shutil.rmtree(folder, ignore_errors=True)
    texts = [file.read_text() for file in tasks.glob("*.jsonl")]
    tokenizer = scored_models.byte_level(texts, 2048)
    sizes = scoring_speed.SIZES[size]
    made = scored_models.write(folder / "stacked", tokenizer, context=1024, **sizes)
    convert(str(made), str(folder / "model"), format="safetensors")
    return folder / "model"


def _contest(
    options: argparse.Namespace, folder: Path, model: Path, tasks: Path, names: list
) -> dict[str, Any]:
    common = ["--tasks", ",".join(names), "--include_path", str(tasks)]
    common += ["--log_samples"]
    ours, theirs = [], []
    for _ in range(options.repeats):
        ours.append(
            _timed(
                [str(options.ours), "-m", "merging.evaluation.lm_eval"],
                ["--model", "merging", f"--model_args=checkpoint={model}"],
                [*common, "--output_path", str(folder / "ours.json")],
                {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(_ROOT)},
            )
        )
        for batch in options.batches:
            out = folder / f"theirs_{batch}.json"
            arguments = f"--model_args=pretrained={model},dtype=float32"
            theirs.append(
                _timed(
                    [str(options.theirs), "-m", "lm_eval"],
                    ["--model", "hf", arguments, "--device", "cpu"],
                    [*common, f"--batch_size={batch}", "--output_path", str(out)],
                    {"CUDA_VISIBLE_DEVICES": "", "HF_HOME": str(folder / "hf_home")},
                )
            )
    agreed = _agreement(folder, names, options.batches[-1])
    best, other = min(ours), min(theirs)
    faster = other.wall / best.wall
    return {
        "ours s": round(best.wall, 1),
        "HF s": round(other.wall, 1),
        "times faster": round(faster, 2),
        "ours, CPU s": round(best.cpu, 1),
        "HF, CPU s": round(other.cpu, 1),
        **{key: round(value, 6) for key, value in agreed.items()},
        "holds": agreed["same choice"] >= SAME_CHOICE
        and agreed["same text"] >= SAME_TEXT
        and agreed["perplexity"] <= NEAR
        and faster >= FASTER,
    }


def _timed(program: list, model: list, rest: list, more: dict[str, str]) -> Seconds:
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = subprocess.run(
        [*program, *model, *rest],
        env=os.environ | offline | more,
        capture_output=True,
        text=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    seconds = Seconds(time.perf_counter() - begin, cpu)
    if ran.returncode:
        raise SystemExit(
            f"{program} ended with {ran.returncode}:\n{ran.stderr[-4000:]}"
        )
    said = f"{seconds.wall:.1f} s ({seconds.cpu:.1f} of CPU)"
    print(f"{' '.join(program[1:])}: {said}", flush=True)
    return seconds


def _agreement(folder: Path, names: list[str], batch: int) -> dict[str, float]:
    choices, texts, perplexity = [], [], 0.0
    for name in names:
        mine = _samples(folder, "ours", name)
        other = _samples(folder, f"theirs_{batch}", name)
        for one, two in zip(mine, other, strict=True):
            assert one["doc_hash"] == two["doc_hash"]
            assert one["prompt_hash"] == two["prompt_hash"]
            first, second = one["filtered_resps"], two["filtered_resps"]
            if name in STOPS:
                texts.append(first == second)
            elif name == "rolling":
                first, second = float(first[0]), float(second[0])
                perplexity = max(perplexity, abs(first - second) / abs(second))
            else:
                best = [_best(answers) for answers in (first, second)]
                choices.append(best[0] == best[1])
    return {
        "same choice": sum(choices) / len(choices),
        "same text": sum(texts) / len(texts),
        "perplexity": perplexity,
    }


def _best(answers: list) -> tuple[int, list]:
    log_p = [float(one[0]) for one in answers]
    # And whether each is what greedy decoding would give.
    return log_p.index(max(log_p)), [str(one[1]) for one in answers]


def _samples(folder: Path, stem: str, task: str) -> list[dict[str, Any]]:
    """Return the latest samples of a task, in the documents' order."""
    of_run = sorted(folder.glob(f"{stem}_2*.json"))[-1]
    date = of_run.stem.removeprefix(f"{stem}_")
    lines = (folder / f"samples_{task}_{date}.jsonl").read_text().splitlines()
    return sorted(map(json.loads, lines), key=lambda sample: sample["doc_id"])


def _of(data: Path, name: str) -> dict[str, Any]:
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
    }


def _write(folder: Path, task: dict[str, Any]) -> None:
    (folder / f"{task['task']}.yaml").write_text(json.dumps(task))  # JSON is YAML


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--ours", type=Path, required=True)
    parser.add_argument("--theirs", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="a folder that both read")
    parser.add_argument("--sizes", nargs="+", default=["tiny", "mid"])
    parser.add_argument("--items", type=int, default=200, help="of each task")
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
