"""How far apart two right computations of one number may be."""

import ml_dtypes
import numpy as np


def rounding(length: int, magnitude: float = 1.0, dtype: object = np.float32) -> float:
    """Return the bound on how far two computations of one sum are apart.

    Added in any order, with or without fused multiply-adds, a sum of n terms is within
    n u Σ|term| of the exact one, with the unit roundoff u = eps / 2 (N. Higham,
    Accuracy and Stability of Numerical Algorithms, 2nd edition, section 4.2; without
    its terms in u²). Two such computations are within twice that, on any CPU.

    Args:
      length: roundings that one number goes through: the terms of its sum; of a chain
        of sums, e.g. the layers of a network, the terms of all of them together.
      magnitude: Σ|term|, or a bound on it; 1.0 for a tolerance relative to that.
      dtype: in which the sum is held.
    """
    eps = float(ml_dtypes.finfo(np.dtype(dtype)).eps)
    return length * eps * magnitude


def decoder_length(
    *, layers: int, width: int, inner: int, mlp: int, context: int, vocabulary: int
) -> int:
    """Return the terms of all sums on the way to a token's log-probability.

    For `rounding`: errors of one sum reach the next about as large as they are, for the
    norms between them divide by what they multiply by. The sum over the vocabulary is
    of positive terms, so its logarithm errs by that many roundings of 1.

    Args:
      layers: of the decoder.
      width: of the residual stream: summed over in norms and projections.
      inner: heads x head_dim, of one layer.
      mlp: of the hidden units of one layer.
      context: positions that attention sums over.
      vocabulary: tokens.
    """
    layer = 4 * width + 2 * inner + context + mlp
    return layers * layer + 2 * width + vocabulary
