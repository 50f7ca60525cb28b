"""A merge with nothing around it: what is left to gain from a better engine.

    python bare_merge.py METHOD SCRATCH OUTPUT INPUT...

For the benchmark's own files only: it takes each as one array of bfloat16, keeps no
journal, looks at no value, can't go on after a stop, rounds as XLA likes, and is told
TIES' thresholds and, for signs that cancel, the majority. What it does is what a merge
by JAX on CPUs can't leave out: import JAX, read the inputs (TIES twice, to count), draw
DARE's masks as `numerics.random_bits` does, merge, take SHA-256 of the output, write
it, and have the disk store it. Two threads do all of it, block by block, in buffers
that are used again. Programs are kept in SCRATCH. INPUT begins with the base, but for
`average`.
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

ELEMENTS = {"ties": 2**20}  # of a block: the quickest of 2**18 to 2**22
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


METHODS = {f.__name__: f for f in (average, task_arithmetic, ties, dare_ties)}


def main(method: str, scratch: str, output: str, *paths: str) -> None:
    """Merge, and say when what was done."""
    jax.config.update("jax_compilation_cache_dir", scratch)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    sys.setswitchinterval(1e-4)

    def merge(*arrays):
        return METHODS[method](*arrays).astype(jnp.bfloat16)

    with open(paths[0], "rb") as file:
        header = 8 + int.from_bytes(file.read(8), "little")
    size = os.path.getsize(paths[0]) - header
    files = [os.open(path, os.O_RDONLY) for path in paths]
    target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.pwrite(target, os.pread(files[0], header, 0), 0)
    os.ftruncate(target, header + size)
    held, written, lock = threading.local(), [0], threading.Lock()
    store = ThreadPoolExecutor(1)
    bytes_of_block = 2 * ELEMENTS.get(method, 2**21)

    def read(at: int) -> list[np.ndarray]:
        if not hasattr(held, "buffers"):
            held.buffers = [_aligned(bytes_of_block) for _ in files]
        for file, buffer in zip(files, held.buffers, strict=True):
            os.preadv(file, [buffer[: min(len(buffer), size - at)]], header + at)
        return [jax.device_put(b.view(ml_dtypes.bfloat16)) for b in held.buffers]

    def count(at: int) -> np.ndarray:
        return np.asarray(counts(*read(at)))

    def work(at: int) -> None:
        merged = np.asarray(program(*read(at))).view(np.uint8)[: size - at]
        hashlib.sha256(merged)
        os.pwrite(target, merged, header + at)
        with lock:
            written[0] += len(merged)
            if written[0] < STORE:
                return
            written[0] = 0
        store.submit(os.fdatasync, target)

    program, counts = jax.jit(merge), jax.jit(counted)
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
