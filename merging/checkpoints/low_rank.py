"""A product of two thin matrices whose bits no order of summation can change.

Rows of BA are made wherever blocks are cut, by whatever BLAS is there, on any number of
threads: each sums in an order of its own. So factors are rounded to so few bits, of
their row's (or column's) largest, that float64 holds every partial sum exactly.
"""

import math

import numpy as np

_DOUBLE = 53  # bits of a float64's significand
_SINGLE = 24
# Multiplications that OpenBLAS leaves to one thread, and rows that still pay.
_SMALL, _LEAST_ROWS = 2**18, 16


def rounded(factor: np.ndarray, axis: int) -> np.ndarray:
    """Return a factor for a product over `axis`, rounded to a grid, float32.

    Where r terms are summed, (53 − log₂ r) / 2 bits below the largest magnitude are
    kept along the axis: 24 for r ≤ 32 and 22 for r = 512, as many as float32 has, or
    almost. A bfloat16 within 2⁻¹⁴ of the largest is not changed. What is not finite
    makes the sums it is in not finite.

    Args:
      factor: [n, r] or [r, n], of a float dtype.
      axis: that of r.
    """
    wide = factor.astype(np.float64)
    terms = max(wide.shape[axis], 1)
    bits = min((_DOUBLE - math.ceil(math.log2(terms))) // 2, _SINGLE)
    with np.errstate(invalid="ignore", over="ignore"):
        largest = np.abs(wide).max(axis=axis, keepdims=True, initial=0)
        _, exponent = np.frexp(largest)
        grid = np.ldexp(1.0, exponent - bits)
        return (np.rint(wide / grid) * grid).astype(np.float32)


def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return left @ right of `rounded` factors, [m, r] and [r, n]: exact, float64.

    In pieces so small that BLAS does not share them out: its threads spin while they
    wait for each other, and a merge's own threads have the cores already.
    """
    left = left.astype(np.float64, copy=False)
    right = right.astype(np.float64, copy=False)
    (rows, terms), columns = left.shape, right.shape[1]
    found = np.empty((rows, columns))
    room = max(_SMALL // max(terms, 1), 1)
    height = max(min(room // max(columns, 1), rows), _LEAST_ROWS)
    width = max(room // height, 1)
    with np.errstate(invalid="ignore", over="ignore"):
        for i in range(0, rows, height):
            for j in range(0, columns, width):
                here = found[i : i + height, j : j + width]
                np.matmul(left[i : i + height], right[:, j : j + width], out=here)
    return found
