"""Model FLOP utilisation of scoring and training at 1B, on one accelerator.

  python tests/benchmarks/decoder_mfu.py --workdir mfu

PaLM's shape in bfloat16: the share of the device's published peak, counted as PaLM's
appendix B does (arXiv 2204.02311), and a profile of either call in the workdir. It has
not run yet: no accelerator was at hand.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from decoder_speed import asked, texts, training
from merge_speed import table

from merging import models

# Multiplications and additions a second in bfloat16, dense, as their makers state them.
PEAKS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


def main() -> int:
    """Print the share of the device's peak; return 2 where there is no such device."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    kind = jax.devices()[0].device_kind
    peak = next((p for name, p in PEAKS.items() if kind.startswith(name)), None)
    if peak is None:
        print(f"{kind} has no known peak; known are {', '.join(PEAKS)}.")
        return 2
    config = models.size("palm", "1b", vocab_size=256_000)
    params, found = models.init(config, 0), []
    for what, rows, length in (("score", 16, 1024), ("train", 8, 1024)):
        run = _accelerated(what, config, params, rows, length)
        run()
        taken = []
        for _ in range(options.repeats):
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
        with jax.profiler.trace(str(options.workdir / f"profile_{what}")):
            run()
        seconds = statistics.median(taken)
        flops = rows * length * _flops_per_token(config, length, what)
        found.append(
            {
                "case": what,
                "rows × tokens": f"{rows} × {length}",
                "seconds": f"{seconds:.4f}",
                "tokens/s": f"{rows * length / seconds:.0f}",
                "MFU": f"{flops / seconds / peak:.1%}",
            }
        )
    print(f"{kind}, peak {peak / 1e12:.0f} TFLOP/s in bfloat16\n{table(found)}")
    return 0


def _accelerated(what, config, params, rows: int, length: int) -> Callable[[], None]:
    tokens = texts(rows, length)
    if what == "score":
        predict, arguments = models.predictor(config), asked(tokens)
        return lambda: jax.block_until_ready(predict.score(params, *arguments))
    run, numbers = training(config)
    held = [run.start(params, numbers)]
    weights = np.ones((1, rows, length), np.float32)

    def step() -> None:
        held[0], losses = run.run(held[0], tokens[None], weights, np.int32(1), numbers)
        jax.block_until_ready(losses)

    return step


def _flops_per_token(config: models.DecoderConfig, length: int, what: str) -> float:
    """Return what a token needs, recomputation not counted (arXiv 2204.02311, B).

    Scoring computes the logits of few positions; the output projection is left out.
    """
    attention = 12 * config.layers * config.heads * config.head_dim * length
    whole = models.parameter_count(config)
    if what == "train":
        return 6 * whole + attention
    return (6 * (whole - config.vocab_size * config.d_model) + attention) / 3


if __name__ == "__main__":
    sys.exit(main())
