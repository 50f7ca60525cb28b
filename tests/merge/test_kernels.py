"""Kernels: what every thread that calls one may rely on."""

import subprocess
import sys

import numpy as np
import pytest

from merging.merge import kernels

# A method's part whose comparison lets other threads run, as any Python may. Two
# threads look for a program while a third has others compiled.
CALLS = """
import threading, time
import jax, numpy as np
from merging.merge.kernels import Kernel

@jax.tree_util.register_static
class Part:
    def __eq__(self, other):
        time.sleep(0)
        return type(other) is Part
    def __hash__(self):
        return 1

kernel = Kernel(lambda part, x: x + 1)
kernel(Part(), np.zeros(3, np.float32))

def again():
    for _ in range(3000):
        kernel(Part(), np.zeros(3, np.float32))

def grow():
    for size in range(4, 60):
        assert kernel(Part(), np.zeros(size, np.float32)).sum() == size

threads = [threading.Thread(target=target) for target in (again, again, grow)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("whole")
"""


def test_threads_may_call_one_kernel():
    """By `jax.jit` alone this ended in SIGSEGV, six times of six (JAX 0.10.2)."""
    done = subprocess.run([sys.executable, "-c", CALLS], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "whole\n"), done.stderr


@pytest.mark.parametrize("size", [0, 7, 2039, 2040, 2041, 40_000])
@pytest.mark.parametrize("most", [1, kernels.FOLDED, 15])
def test_halves_of_bytes_are_added_up(size, most):
    rng = np.random.default_rng(size)
    low, high = rng.integers(0, most + 1, (2, size), np.uint8)
    found = kernels.tally(low + 16 * high, most)
    assert found == (low.sum(dtype=int), high.sum(dtype=int))
    full = np.full(size, 17 * most, np.uint8)
    assert kernels.tally(full, most) == (size * most, size * most)
