"""The memory that each of P processes takes to restore a model split over them all.

    python tests/benchmarks/restore_memory.py                # 0.5 GB, P = 1, 2, 4
    python tests/benchmarks/restore_memory.py --processes 8 --layers 48

Anonymous memory of each process, sampled while it restores, over what it had before:
the share that stays on its (virtual) device, and what it took on the way. The
target is 1.3/P of the model and a constant of 0.15 GB.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHARE, CONSTANT = 1.3, 0.15
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "intermediate_size": 2048,
    "vocab_size": 8192,
    "tie_word_embeddings": True,
}


def make(folder: Path, layers: int) -> None:
    """Write a random model of so many layers, as safetensors and as Orbax."""
    from merging import checkpoints, models
    from merging.models import hf
    from merging.models.hf.convert import convert

    text = json.dumps({**LLAMA, "num_hidden_layers": layers})
    _, config = hf.read_config(text)
    (folder / "described").mkdir()
    (folder / "described" / "config.json").write_text(text)
    checkpoints.save(folder / "orbax", models.init(config, 0))
    (folder / "orbax" / "config.json").write_text(text)
    described = str(folder / "described")
    how = {"format": "safetensors", "auxiliary_files": described}
    convert(str(folder / "orbax"), str(folder / "safetensors"), **how)


def anonymous() -> float:
    """Return this process's anonymous memory in GB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1e6
    raise OSError("no RssAnon in /proc/self/status")


def restore(path: str) -> None:
    """Restore over all processes, and print what it took as JSON."""
    from merging.models import hf
    from merging.runtime import processes, sharding

    processes.initialize()
    import jax

    mesh = sharding.make_mesh({"fsdp": -1})
    before = peak = anonymous()
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.003):
            peak = max(peak, anonymous())

    thread = threading.Thread(target=sample)
    thread.start()
    _, params = hf.load(path, mesh=mesh)
    jax.block_until_ready(params)
    done.set()
    thread.join()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 1e9
    kept = anonymous() - before
    print(json.dumps({"model": size, "peak": peak - before, "kept": kept}), flush=True)


def measured(path: Path, count: int) -> list[dict[str, float]]:
    """Return what each of so many processes says."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    told = {"MERGING_COORDINATOR": address, "MERGING_PROCESSES": str(count)}
    paths = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, "--restore", str(path)],
            env=os.environ
            | paths
            | (told if count > 1 else {})
            | ({"MERGING_PROCESS": str(number)} if count > 1 else {}),
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    said = [process.communicate()[0] for process in started]
    return [json.loads(text.splitlines()[-1]) for text in said]


def main() -> int:
    """Print a table, and return 1 if a process took more than the target."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, nargs="*", default=(1, 2, 4))
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--restore")
    chosen = parser.parse_args()
    if chosen.restore:
        restore(chosen.restore)
        return 0
    over = 0
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), chosen.layers)
        for name in ("safetensors", "orbax"):
            for count in chosen.processes:
                begin = time.monotonic()
                found = measured(Path(folder) / name, count)
                seconds, size = time.monotonic() - begin, found[0]["model"]
                worst = max(one["peak"] for one in found)
                most = SHARE / count * size + CONSTANT
                over += worst > most
                print(
                    f"{name:12} model {size:.2f} GB, P = {count}: peak {worst:.2f} GB "
                    f"= {worst / size * count:.2f}/P, kept "
                    f"{max(one['kept'] for one in found):.2f}; target {most:.2f}; "
                    f"{seconds:.0f} s",
                    flush=True,
                )
    return bool(over)


if __name__ == "__main__":
    sys.exit(main())
