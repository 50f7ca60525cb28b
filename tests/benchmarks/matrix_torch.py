"""Spectral, mask and data-driven merges written straight down in PyTorch, to be timed.

  VENV/bin/python tests/benchmarks/matrix_torch.py METHOD OUTPUT BASE EXPERT …
  … matrix_torch.py fisher OUTPUT - EXPERT … -- STATISTICS …

A tensor at a time, in float32, as one writes it from the papers: exact SVDs, WUDI by
autograd, RegMean by a solve. Files are safetensors; the output is bfloat16.
"""

import os
import sys
from collections.abc import Callable, Sequence

import torch
from safetensors import safe_open
from safetensors.torch import save_file

STEPS = int(os.environ.get("WUDI_STEPS", "300"))
RATE, COMMON, OFF_DIAGONAL = 1e-5, 0.8, 0.9
SCALE, HELD = 0.4, 0.4
Tensors = Sequence[torch.Tensor]


def polar(matrix: torch.Tensor) -> torch.Tensor:
    """Return the orthonormal polar factor."""
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    return u @ v


def iso_c(deltas: Tensors) -> torch.Tensor:
    """Give all singular values of the sum their mean (arXiv 2502.04959)."""
    u, s, v = torch.linalg.svd(sum(deltas), full_matrices=False)
    return s.mean() * (u @ v)


def iso_cts(deltas: Tensors) -> torch.Tensor:
    """Do likewise in common directions and each task's own (arXiv 2502.04959)."""
    count, directions = len(deltas), min(deltas[0].shape)
    shared = int(directions * COMMON)
    own = min(round((directions - shared) / count), directions // count)
    shared = directions - own * count
    u, s, v = torch.linalg.svd(sum(deltas), full_matrices=False)
    lefts, spectra, rights = [u[:, :shared]], [s[:shared]], [v[:shared]]
    for delta in deltas:
        left = delta - lefts[0] @ (lefts[0].T @ delta)
        u, s, v = torch.linalg.svd(left, full_matrices=False)
        lefts.append(u[:, :own])
        spectra.append(s[:own])
        rights.append(v[:own])
    left, right = polar(torch.cat(lefts, 1)), polar(torch.cat(rights, 0))
    return torch.cat(spectra).mean() * (left @ right)


def tsv_m(deltas: Tensors) -> torch.Tensor:
    """Make the top 1/K directions of all tasks orthonormal (arXiv 2412.00081)."""
    rank = max(min(deltas[0].shape) // len(deltas), 1)
    parts = [torch.linalg.svd(delta, full_matrices=False) for delta in deltas]
    left = polar(torch.cat([u[:, :rank] for u, _, _ in parts], 1))
    right = polar(torch.cat([v[:rank] for _, _, v in parts], 0))
    return (left * torch.cat([s[:rank] for _, s, _ in parts])) @ right


def wudi(deltas: Tensors) -> torch.Tensor:
    """Disturb each task least, by Adam (arXiv 2503.08099)."""
    stacked = torch.stack(list(deltas))
    norms = stacked.square().sum((1, 2))
    merged = stacked.sum(0).requires_grad_()
    optimizer = torch.optim.Adam([merged], lr=RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        disturbed = (merged - stacked) @ stacked.transpose(1, 2)
        (disturbed.square().sum((1, 2)) / norms).sum().backward()
        optimizer.step()
    return merged.detach()


def consensus_ta(deltas: Tensors) -> torch.Tensor:
    """Add up what at least two tasks hold on to (arXiv 2405.07813)."""
    total = sum(deltas)
    agree = sum((d.abs() > HELD * (total - d).abs()).int() for d in deltas)
    return SCALE * torch.where(agree >= 2, total, 0)


def emr(deltas: Tensors) -> torch.Tensor:
    """Take the elected sign's largest magnitude (arXiv 2405.17461)."""
    elected = torch.where(sum(deltas) > 0, 1.0, -1.0)
    agreeing = [torch.where(d.sign() == elected, d.abs(), 0) for d in deltas]
    return elected * torch.stack(agreeing).amax(0)


def fisher(experts: Tensors, information: Tensors) -> torch.Tensor:
    """Weigh each number by its Fisher information (arXiv 2111.09832)."""
    total = sum(information)
    known = total > 0
    mean = sum(experts) / len(experts)
    weighted = sum(x * f for x, f in zip(experts, information, strict=True))
    return torch.where(known, weighted / torch.where(known, total, 1), mean)


def regmean(experts: Tensors, grams: Tensors) -> torch.Tensor:
    """Solve for the nearest outputs (arXiv 2212.09849); weights [outputs, inputs]."""
    total, pull = 0, 0
    for weight, gram in zip(experts, grams, strict=True):
        diagonal = torch.diag(torch.diag(gram))
        gram = OFF_DIAGONAL * gram + (1 - OFF_DIAGONAL) * diagonal
        total, pull = total + gram, pull + gram @ weight.T
    return torch.linalg.solve(total, pull).T


OF_VECTORS: dict[str, Callable[[Tensors], torch.Tensor]] = {
    "iso_c": iso_c,
    "iso_cts": iso_cts,
    "tsv_m": tsv_m,
    "wudi": wudi,
}
OF_ELEMENTS = {"consensus_ta": consensus_ta, "emr": emr}
OF_MODELS = {"fisher": fisher, "regmean": regmean}


def main() -> None:
    """Merge what the command line names."""
    method, output, base, *rest = sys.argv[1:]
    cut = rest.index("--") if "--" in rest else len(rest)
    experts, statistics = _opened(rest[:cut]), _opened(rest[cut + 1 :])
    under = None if base == "-" else _opened([base])[0]
    merged = {}
    for name in experts[0].keys():  # noqa: SIM118
        values = [file.get_tensor(name).float() for file in experts]
        told = [file for file in statistics if name in file.keys()]  # noqa: SIM118
        if under is not None:
            start = under.get_tensor(name).float()
            deltas = [value - start for value in values]
            of_matrix = OF_VECTORS.get(method) if start.ndim == 2 else _mean
            values = [start + (OF_ELEMENTS.get(method) or of_matrix)(deltas)]
        elif told:
            of = [file.get_tensor(name) for file in told]
            values = [OF_MODELS[method](values, of)]
        merged[name] = _mean(values).to(torch.bfloat16).contiguous()
    save_file(merged, output)


def _mean(values: Tensors) -> torch.Tensor:
    return sum(values) / len(values)


def _opened(paths: Sequence[str]) -> list:
    return [safe_open(f"{path}/model.safetensors", "pt") for path in paths]


if __name__ == "__main__":
    main()
