"""A merge with nothing around it: what is left to gain from a better engine.

    python bare_merge.py METHOD SCRATCH OUTPUT INPUT...

For the benchmark's own files only: it takes each as one array of bfloat16, keeps no
journal, looks at no value, can't go on after a stop, rounds as XLA likes, and is told
TIES' thresholds and, for signs that cancel, the majority. What it does is what a merge
by JAX on CPUs can't leave out: import JAX, read the inputs (TIES twice, to count), draw
DARE's masks as `numerics.random_bits` does, merge, take SHA-256 of the output, write
it, and have the disk store it. Two threads do all of it, block by block, in buffers
that are used again. Programs are kept in SCRATCH. INPUT begins with the base, but for
`average`, and `fisher`, whose last half are statistics in float32. Where a method sums
over tensors (`nuslerp`, `model_stock`), a block is one, so that none is read twice.
"""

import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

STARTED = time.perf_counter()

import hashlib  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import ml_dtypes  # noqa: E402
import numpy as np  # noqa: E402

# Of a block: the quickest of 2**18 to 2**22.
ELEMENTS = {"ties": 2**20, "nuslerp": 2**20, "model_stock": 2**20}
STORE = 2**24  # bytes, after which the disk is asked to store
THREADS = 2
SCALE, DENSITY = 0.4, 0.2
CUT = 0.00256  # a fifth of |N(0, 0.002)| lies above


def average(*experts):
    """Return the mean."""
    return sum(x.astype(jnp.float32) for x in experts) / len(experts)


def task_arithmetic(base, *experts):
    """Return θ₀ + λ Σ Δ."""
    start = base.astype(jnp.float32)
    return start + SCALE * sum(x.astype(jnp.float32) - start for x in experts)


def _elected(start, deltas):
    """Return θ₀ plus the mean of the values that agree with the sum's sign."""
    signs = jnp.where(sum(deltas) >= 0, 1.0, -1.0)
    agree = [delta * signs > 0 for delta in deltas]
    total = sum(jnp.where(a, d, 0) for a, d in zip(agree, deltas, strict=True))
    return start + total / jnp.maximum(sum(a.astype(jnp.float32) for a in agree), 1)


def ties(base, *experts):
    """Return TIES of known thresholds."""
    start = base.astype(jnp.float32)
    deltas = [x.astype(jnp.float32) - start for x in experts]
    return _elected(start, [jnp.where(jnp.abs(d) >= CUT, d, 0) for d in deltas])


def dare_ties(base, *experts):
    """Return DARE's masks and rescaling, then an election."""
    start = base.astype(jnp.float32)
    place, kept = jnp.arange(base.size, dtype=jnp.uint32), []
    for key, expert in enumerate(experts):
        bits = place ^ np.uint32(key + 1)
        bits = (bits ^ (bits >> 17)) * np.uint32(0xED5AD4BB) ^ np.uint32(key + 7)
        bits = (bits ^ (bits >> 11)) * np.uint32(0xAC4C1B51)
        bits = (bits ^ (bits >> 15)) * np.uint32(0x31848BAB)
        delta = (expert.astype(jnp.float32) - start) / DENSITY
        bits = bits ^ (bits >> 14)
        kept.append(jnp.where(bits < np.uint32(DENSITY * 2**32), delta, 0))
    return _elected(start, kept)


def counted(base, *experts):
    """Return how many magnitudes of each expert are kept."""
    start = base.astype(jnp.float32)
    deltas = [jnp.abs(x.astype(jnp.float32) - start) for x in experts]
    return jnp.stack([(delta >= CUT).sum() for delta in deltas])


def fisher(*models):
    """Return the mean weighted by Fisher information; both in one list."""
    half = len(models) // 2
    experts = [x.astype(jnp.float32) for x in models[:half]]
    total, mean = sum(models[half:]), sum(experts) / half
    weighted = sum(x * f for x, f in zip(experts, models[half:], strict=True))
    return jnp.where(total > 0, weighted / jnp.where(total > 0, total, 1), mean)


def dots(base, *experts):
    """Return the dot products of all pairs of task vectors."""
    start = base.astype(jnp.float32)
    deltas = [x.astype(jnp.float32) - start for x in experts]
    pairs = [(a, b) for i, a in enumerate(deltas) for b in deltas[i:]]
    return jnp.stack([(a * b).sum() for a, b in pairs])


def nuslerp(known, base, *experts):
    """Return the middle of the arc between two task vectors."""
    start = base.astype(jnp.float32)
    one, other = (x.astype(jnp.float32) - start for x in experts)
    lengths = jnp.sqrt(known[0]), jnp.sqrt(known[2])
    angle = jnp.arccos(known[1] / (lengths[0] * lengths[1]))
    share = jnp.sin(angle / 2) / jnp.sin(angle) * (lengths[0] + lengths[1]) / 2
    return start + share * (one / lengths[0] + other / lengths[1])


def model_stock(known, base, *experts):
    """Return the mean, drawn towards the base where the experts disagree."""
    start, count = base.astype(jnp.float32), len(experts)
    gram = jnp.zeros((count, count)).at[jnp.triu_indices(count)].set(known)
    norms = jnp.sqrt(jnp.diag(gram))
    cosines = (gram / jnp.outer(norms, norms))[jnp.triu_indices(count, 1)].mean()
    share = count * cosines / (1 + (count - 1) * cosines)
    mean = sum(x.astype(jnp.float32) for x in experts) / count
    return start + share * (mean - start)


METHODS = {
    f.__name__: f
    for f in (
        *(average, task_arithmetic, ties, dare_ties),
        *(fisher, nuslerp, model_stock),
    )
}
SUMMED = ("nuslerp", "model_stock")


def main(method: str, scratch: str, output: str, *paths: str) -> None:
    """Merge, and say when what was done."""
    jax.config.update("jax_compilation_cache_dir", scratch)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    sys.setswitchinterval(1e-4)

    def merge(*arrays):
        return METHODS[method](*arrays).astype(jnp.bfloat16)

    files = [os.open(path, os.O_RDONLY) for path in paths]
    starts = [8 + int.from_bytes(os.pread(file, 8, 0), "little") for file in files]
    header, size = starts[0], os.path.getsize(paths[0]) - starts[0]
    wide = [method == "fisher" and i >= len(paths) // 2 for i in range(len(paths))]
    target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.pwrite(target, os.pread(files[0], header, 0), 0)
    os.ftruncate(target, header + size)
    held, written, lock = threading.local(), [0], threading.Lock()
    store = ThreadPoolExecutor(1)
    bytes_of_block = 2 * ELEMENTS.get(method, 2**21)

    def read(at: int) -> list[np.ndarray]:
        if not hasattr(held, "buffers"):
            held.buffers = [_aligned(bytes_of_block * (1 + two)) for two in wide]
        each = zip(files, starts, held.buffers, wide, strict=True)
        for file, start, buffer, two in each:
            left = (size - at) * (1 + two)
            os.preadv(file, [buffer[: min(len(buffer), left)]], start + at * (1 + two))
        return [
            jax.device_put(b.view(np.float32 if two else ml_dtypes.bfloat16))
            for b, two in zip(held.buffers, wide, strict=True)
        ]

    def count(at: int) -> np.ndarray:
        return np.asarray(counts(*read(at)))

    def work(at: int) -> None:
        arrays = read(at)
        known = [sums(*arrays)] if method in SUMMED else []
        merged = np.asarray(program(*known, *arrays)).view(np.uint8)[: size - at]
        hashlib.sha256(merged)
        os.pwrite(target, merged, header + at)
        with lock:
            written[0] += len(merged)
            if written[0] < STORE:
                return
            written[0] = 0
        store.submit(os.fdatasync, target)

    program, counts, sums = jax.jit(merge), jax.jit(counted), jax.jit(dots)
    jax.devices()
    begun = time.perf_counter()
    places = range(0, size, bytes_of_block)
    with ThreadPoolExecutor(THREADS) as threads:
        if method == "ties":
            sum(threads.map(count, places))
        list(threads.map(work, places))
    done = time.perf_counter()
    store.shutdown()
    os.fsync(target)
    end = time.perf_counter()
    print(f"importing JAX {begun - STARTED:.2f} s, blocks {done - begun:.2f}", end=", ")
    print(f"the rest of storing {end - done:.2f}")


def _aligned(size: int) -> np.ndarray:
    """Return bytes that JAX takes without a copy."""
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size]


if __name__ == "__main__":
    main(*sys.argv[1:])
