"""Scoring and training the decoder at 135M on a CPU, beside transformers.

  python tests/benchmarks/decoder_speed.py --workdir decoder
  python tests/benchmarks/decoder_speed.py --workdir decoder --torch VENV/bin/python

A Llama in SmolLM2-135M's shape, random weights, float32: log p of the last 8 tokens of
each row, and a training step (forward, backward, clipping, AdamW) that learns every
token, of four made together. Both sides are processes that keep their model, take
turns, and must agree in log p; transformers computes the logits of those 8 tokens only,
and in one more column all of them, as its usual callers do. Medians; the target is a
ratio of 1.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from measuring import machine
from merge_speed import table

from merging import checkpoints, models
from merging.models import hf as families
from merging.models.hf.convert import convert
from merging.training import Hyperparameters, steps

_TORCH_SIDE = Path(__file__).with_name("decoder_torch.py")
ANSWER = 8  # tokens of a row that are scored
CLOSE = 2e-3  # of a sum of 8 log-probabilities
# Steps that are timed together: a training makes `log_every` (50) of them in a call,
# and what a call allocates costs as much as a fifth of a step.
STEPS = 4
SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "max_position_embeddings": 2048,
    "rope_theta": 100000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "dtype": "float32",
}


class Case(NamedTuple):
    """What is timed: "score", "score_all" (every logit; theirs only) or "train"."""

    what: str
    rows: int
    length: int


CASES = [
    Case(what, rows, length)
    for what, rows, length in (
        ("score", 64, 32),
        ("score", 16, 128),
        ("score", 4, 512),
        ("train", 16, 64),
        ("train", 4, 256),
    )
]


def main() -> int:
    """Print the table, and return 0 if both sides agree."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--torch", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", help="score or train")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.workdir / "model"
    if options.serve:
        return serve(_Ours(folder))
    if not folder.exists():
        _make(folder)
    ours = _Contender([sys.executable, __file__, "--serve", "--workdir"], folder.parent)
    theirs = _Contender([options.torch, str(_TORCH_SIDE)], folder)
    print(json.dumps(machine()))
    rows, agree = [], True
    for case in (c for c in CASES if options.only in (None, c.what)):
        row, same = _compared(case, ours, theirs, options.repeats)
        rows.append(row)
        agree &= same
        print(f"{case}: {row}", file=sys.stderr, flush=True)
    print(table(rows))
    return 0 if agree else 1


def serve(contender: Callable[[str, int, int], Callable[[], float]]) -> int:
    """Time cases that come in as JSON lines, each after one run to warm up."""
    for line in sys.stdin:
        what, rows, length, repeat = json.loads(line)
        run = contender(what, rows, length)
        if not repeat:
            run()
        start = time.perf_counter()
        value = run()
        seconds = time.perf_counter() - start
        print(json.dumps([seconds, value]), flush=True)
    return 0


class _Contender:
    """A process that times cases when it is told to."""

    def __init__(self, command: list[str], folder: Path):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([*command, str(folder)], **pipes)

    def time(self, case: Case, repeat: int) -> tuple[float, float]:
        """Return the seconds that a case takes, and the number that it finds."""
        print(json.dumps([*case, repeat]), file=self._process.stdin, flush=True)
        seconds, value = json.loads(self._process.stdout.readline())
        return seconds, value


def _compared(case: Case, ours, theirs, repeats: int) -> tuple[dict[str, object], bool]:
    sides = {"ours": (ours, case), "transformers": (theirs, case)}
    if case.what == "score":
        sides["all logits"] = (theirs, case._replace(what="score_all"))
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    values = {}
    for repeat in range(repeats):
        for name, (side, asked) in sides.items():
            taken, values[name] = side.time(asked, repeat)
            seconds[name].append(taken / (STEPS if case.what == "train" else 1))
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    row = {"case": case.what, "rows × tokens": f"{case.rows} × {case.length}"}
    row |= {f"{name}, s": f"{medians[name]:.3f}" for name in ("ours", "transformers")}
    row["ratio"] = f"{medians['ours'] / medians['transformers']:.2f}"
    apart = abs(values["ours"] - values["transformers"]) / case.rows
    row["apart"] = f"{apart:.1e}"
    row["all logits, s"] = f"{medians.get('all logits', float('nan')):.3f}"
    # Losses part: each side learns at a rate of its own.
    return row, case.what == "train" or apart <= CLOSE


def _make(folder: Path) -> None:
    """Write the random model as transformers has it."""
    described = folder.parent / "described"
    described.mkdir(parents=True, exist_ok=True)
    (described / "config.json").write_text(json.dumps(SHAPE))
    _, config = families.read_config(json.dumps(SHAPE))
    stacked = folder.parent / "stacked"
    checkpoints.save(stacked, models.init(config, 0))
    convert(
        str(stacked), str(folder), format="safetensors", auxiliary_files=str(described)
    )


class _Ours:
    """Our side, called for a case to run."""

    def __init__(self, folder: Path):
        self._config, self._params = families.load(folder)
        self._state: Any = None

    def __call__(self, what: str, rows: int, length: int) -> Callable[[], float]:
        tokens = texts(rows, length)
        return self._scored(tokens) if what == "score" else self._trained(tokens)

    def _scored(self, tokens: np.ndarray) -> Callable[[], float]:
        predict = models.predictor(self._config)
        arguments = asked(tokens)
        return lambda: float(np.sum(predict.score(self._params, *arguments)))

    def _trained(self, tokens: np.ndarray) -> Callable[[], float]:
        run, numbers = training(self._config)
        tokens = np.stack([tokens] * STEPS)
        weights = np.ones(tokens.shape, np.float32)
        weights[..., 0] = 0  # transformers predicts no first token

        def step() -> float:
            if self._state is None:
                self._state = run.start(self._params, numbers)
            self._state, losses = run.run(
                self._state, tokens, weights, np.int32(STEPS), numbers
            )
            return float(losses[-1])

        return step


def texts(rows: int, length: int) -> np.ndarray:
    """Return random tokens [rows, length], the same on both sides."""
    rng = np.random.default_rng(rows * length)
    return rng.integers(3, SHAPE["vocab_size"], (rows, length)).astype(np.int32)


def asked(tokens: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return what `score` is given for log p of the last tokens of each row."""
    rows, length = tokens.shape
    first = length - ANSWER
    return (
        tokens[:, 0],
        tokens[:, 1:-1],
        np.full(rows, first - 1, np.int32),
        tokens[:, first : first + 1],
        np.zeros((rows, ANSWER - 1), np.int32),
        tokens[:, first + 1 :],
    )


def training(
    config: models.DecoderConfig,
) -> tuple[steps.TrainFunctions, steps.TracedHyperparameters]:
    """Return a training program, and its numbers."""
    hyperparameters = Hyperparameters(steps=1000, learning_rate=1e-5)
    return steps.train_functions(
        config, config.dtype, None
    ), steps.TracedHyperparameters.of(hyperparameters)


if __name__ == "__main__":
    sys.exit(main())
