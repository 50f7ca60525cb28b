"""BLAS and LAPACK on one thread, and an SVD that converges.

How many threads there are can change a bit, and where several threads of a program
compute, those of each wait for the others' on the same cores.
"""

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import threadpoolctl

_lock = threading.Lock()
_limits: list[Any] = []  # one for each that is within; the first one's is in force


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread within, until the last who is within leaves.

    Work that goes on in the background, as JAX's does, is to be waited for inside.
    """
    with _lock, _in_control():
        _limits.append(_libraries().limit(limits=1, user_api="blas"))
    try:
        yield
    finally:
        with _lock, _in_control():
            if len(_limits) > 1:
                _limits.pop()
            else:
                _limits.pop().restore_original_limits()


def svd(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return U [m, k], σ [k] and Vᵀ [k, n] of a finite matrix, k = min(m, n).

    By QR steps where LAPACK's gesdd does not converge, which is rare: gesvd takes
    longer, and does.
    """
    try:
        return np.linalg.svd(matrix, full_matrices=False)
    except np.linalg.LinAlgError:
        import scipy.linalg

        return scipy.linalg.svd(matrix, full_matrices=False, lapack_driver="gesvd")


@contextlib.contextmanager
def _in_control() -> Iterator[None]:
    """Let this thread set the number: OpenBLAS's belongs to who has set it first.

    The others' calls would do nothing, in recent versions of threadpoolctl.
    """
    _nobody_controls()
    yield
    _nobody_controls()


def _nobody_controls() -> None:
    for library in _libraries().lib_controllers:
        if hasattr(library, "clear_controlling_thread"):
            library.clear_controlling_thread(force=True)


@functools.cache
def _libraries() -> threadpoolctl.ThreadpoolController:
    # JAX computes with the LAPACK that SciPy brings.
    import scipy.linalg  # noqa: F401

    return threadpoolctl.ThreadpoolController()
