"""What the K × K Gram matrix of task vectors says of them: pure functions, float64.

Notation: Δᵢ is the task vector θᵢ − θ₀ as one vector of n coordinates, G its Gram
matrix, G[i, j] = ⟨Δᵢ, Δⱼ⟩, λ the eigenvalues of G. They are the squared singular
values of the stack, the K × n matrix of all task vectors. Every function costs
O(K³) at most, whatever n is.
"""

import numpy as np

# Eigenvalues below this share of the largest are rounding, and count as zero.
ROUNDING = 1e-12


def norms(gram: np.ndarray) -> np.ndarray:
    """Return the lengths ‖Δᵢ‖₂ = √G[i, i]: float64 [K], in the weights' units."""
    return np.sqrt(np.maximum(np.diag(gram), 0))


def cosines(gram: np.ndarray) -> np.ndarray:
    """Return cos(Δᵢ, Δⱼ) = G[i, j] / (‖Δᵢ‖ ‖Δⱼ‖): float64 [K, K], in −1..1.

    0 with a task vector that is zero; otherwise 1 on the diagonal.
    """
    lengths = norms(gram)
    products = np.outer(lengths, lengths)
    found = np.divide(gram, products, out=np.zeros_like(products), where=products > 0)
    found = np.clip(found, -1, 1)
    np.fill_diagonal(found, (lengths > 0).astype(float))
    return found


def eigenvalues(gram: np.ndarray) -> np.ndarray:
    """Return λ, the largest first, without what rounding made negative: [K]."""
    found = np.linalg.eigvalsh(gram)[::-1]
    return np.where(found > ROUNDING * max(found[0], 0), found, 0.0)


def effective_rank(spectrum: np.ndarray) -> float:
    """Return exp(H(λ / Σλ)), H the entropy in nats: from 1 to the rank; 0 of zeros.

    Roy and Vetterli 2007, "The effective rank", of the squared singular values λ
    (they take the singular values themselves, which weighs small ones more).

    Args:
      spectrum: λ ≥ 0, such as `eigenvalues` gives, or the squares of singular values.
    """
    share = _shares(spectrum)
    return float(np.exp(-np.sum(share * np.log(share)))) if len(share) else 0.0


def stable_rank(spectrum: np.ndarray) -> float:
    """Return ‖A‖²_F / ‖A‖²₂ = Σλ / max λ: from 1 to the rank; 0 of zeros.

    Rudelson and Vershynin 2007, arXiv math/0503442.

    Args:
      spectrum: as for `effective_rank`.
    """
    share = _shares(spectrum)
    return float(1 / share.max()) if len(share) else 0.0


def participation_ratio(spectrum: np.ndarray) -> float:
    """Return (Σλ)² / Σλ²: how many λ share the sum alike; 0 of zeros.

    Of a vector's squared coordinates it is the number of coordinates that carry it.

    Args:
      spectrum: as for `effective_rank`.
    """
    share = _shares(spectrum)
    return float(1 / np.sum(share**2)) if len(share) else 0.0


def _shares(spectrum: np.ndarray) -> np.ndarray:
    spectrum = np.asarray(spectrum, np.float64)
    total = spectrum.sum()
    return spectrum[spectrum > 0] / total if total > 0 else spectrum[:0]
