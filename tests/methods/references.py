"""Each method in NumPy float64, from the formula alone: sorts, loops, whole vectors.

Models are ``{path: float64 array}``. Nothing of the package is imported.
"""

import math
import zlib

import numpy as np

MASK64 = 2**64 - 1


def average(base, experts, seed, weights, **_):
    del base, seed
    total = sum(weights)
    return {
        path: sum(w * e[path] for w, e in zip(weights, experts.values(), strict=True))
        / total
        for path in next(iter(experts.values()))
    }


def task_arithmetic(base, experts, seed, weights, scale):
    del seed
    return _add(base, _weighted_sum(_deltas(base, experts), weights), scale)


def ties(base, experts, seed, weights, density, scale, scope, ties, zero):
    del seed
    kept = [trim(d, density, scope, ties) for d in _deltas(base, experts)]
    merged = disjoint_mean(kept, weights, zero, divide_by="weight")
    return _add(base, merged, scale)


def dare(base, experts, seed, weights, density, scale, rescale):
    dropped = _drop(base, experts, seed, density, rescale)
    return _add(base, _weighted_sum(dropped, weights), scale)


def dare_ties(
    base, experts, seed, weights, density, scale, trim_density, rescale, zero
):
    dropped = _drop(base, experts, seed, density, rescale)
    if trim_density is not None:
        dropped = [trim(d, trim_density, "global", "keep_all") for d in dropped]
    merged = disjoint_mean(dropped, weights, zero, divide_by="weight")
    return _add(base, merged, scale)


def rht(base, experts, seed, weights, density, scale):
    del seed
    kept = [trim(d, density, "tensor", "exact") for d in _deltas(base, experts)]
    kept = [{path: x / density for path, x in d.items()} for d in kept]
    merged = disjoint_mean(kept, weights, "positive", divide_by="count")
    return _add(base, merged, scale)


def linear_mergekit(base, experts, seed, weights, normalize):
    del base, seed
    models = list(experts.values())
    return _normalized(_weighted_sum(models, weights), weights, normalize)


def task_arithmetic_mergekit(base, experts, seed, weights, scale, normalize):
    del seed
    merged = _weighted_sum(_deltas(base, experts), weights)
    return _add(base, _normalized(merged, weights, normalize), scale)


def ties_mergekit(base, experts, seed, weights, density, scale, normalize):
    del seed
    kept = []
    for delta in _deltas(base, experts):
        one = {}
        for path, x in delta.items():
            share = max(1, int(density * x.size)) / x.size
            one[path] = _trim_vector(x.ravel(), share + 1e-12, "exact").reshape(x.shape)
        kept.append(one)
    return _add(base, _elected(kept, weights, normalize), scale)


def dare_linear_mergekit(
    base, experts, seed, weights, density, scale, normalize, rescale
):
    dropped = _drop(base, experts, seed, density, rescale)
    merged = _weighted_sum(dropped, weights)
    return _add(base, _normalized(merged, weights, normalize), scale)


def dare_ties_mergekit(
    base, experts, seed, weights, density, scale, normalize, rescale
):
    dropped = _drop(base, experts, seed, density, rescale)
    return _add(base, _elected(dropped, weights, normalize), scale)


def _normalized(merged, weights, normalize):
    divisor = (sum(weights) or 1) if normalize else 1
    return {path: x / divisor for path, x in merged.items()}


def _elected(deltas, weights, normalize):
    """Σ over the experts with the sign of Σ wᵢΔᵢ (0 is +), over their weights' sum."""
    merged = {}
    for path in deltas[0]:
        weighted = [w * d[path] for w, d in zip(weights, deltas, strict=True)]
        sign = np.where(sum(weighted) >= 0, 1, -1)
        top = sum(np.where(x * sign > 0, x, 0) for x in weighted)
        bottom = sum(
            np.where(x * sign > 0, w, 0) for w, x in zip(weights, weighted, strict=True)
        )
        merged[path] = top / np.where(bottom == 0, 1, bottom) if normalize else top
    return merged


def trim(delta, density, scope, ties):
    """Zero all but the largest magnitudes of each set that `scope` names."""
    paths = sorted(delta)
    if scope == "global":
        flat = np.concatenate([delta[path].ravel() for path in paths])
        flat = _trim_vector(flat, density, ties)
        ends = np.cumsum([delta[path].size for path in paths])[:-1]
        parts = zip(paths, np.split(flat, ends), strict=True)
        return {path: part.reshape(delta[path].shape) for path, part in parts}
    if scope == "tensor":
        return {
            p: _trim_vector(x.ravel(), density, ties).reshape(x.shape)
            for p, x in delta.items()
        }
    trimmed = {}
    for path, x in delta.items():
        rows = x.reshape(-1, x.shape[-1] if x.ndim else 1)
        done = [_trim_vector(row, density, ties) for row in rows]
        trimmed[path] = np.array(done).reshape(x.shape)
    return trimmed


def _trim_vector(x, density, ties):
    n = x.size
    k = math.floor(density * n)
    magnitude = np.abs(x)
    if ties == "keep_all":
        # The (n - k)-th smallest, counted from 1; density 1 keeps all.
        threshold = np.sort(magnitude)[n - k - 1] if k < n else 0
        return np.where(magnitude >= threshold, x, 0)
    largest_first = np.lexsort((np.arange(n), -magnitude))
    out = np.zeros_like(x)
    out[largest_first[:k]] = x[largest_first[:k]]
    return out


def disjoint_mean(deltas, weights, zero, divide_by):
    """Elect signs by mass, then average the experts that agree, element by element."""
    sign = {path: np.sign(sum(d[path] for d in deltas)) for path in deltas[0]}
    majority = 1 if sum(s.sum() for s in sign.values()) >= 0 else -1
    merged = {}
    for path, s in sign.items():
        s = np.where(s == 0, majority if zero == "majority" else 1, s)
        top, bottom = np.zeros_like(s), np.zeros_like(s)
        for w, d in zip(weights, deltas, strict=True):
            agrees = d[path] * s > 0
            top += np.where(agrees, w * d[path], 0)
            bottom += np.where(agrees, w if divide_by == "weight" else 1, 0)
        merged[path] = top / np.where(bottom == 0, 1, bottom)
    return merged


def keep_mask(seed, expert, path, size, density):
    """The random mask, in Python integers: see `numerics.random_bits`."""
    names = zlib.crc32(expert.encode()) << 32 | zlib.crc32(path.encode())
    key = _splitmix(_splitmix(seed & MASK64) ^ names)
    bound = min(max(round(density * 2**32), 1), 2**32)
    hashes = [hash_index(i, key & 0xFFFFFFFF, key >> 32) for i in range(size)]
    return np.array([h < bound for h in hashes], bool)


def hash_index(index, key0, key1):
    high, low = index >> 32, index & 0xFFFFFFFF
    stages = [(17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB)]

    def mix(x, between):
        for i, (shift, factor) in enumerate(stages):
            x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
            if i == 0:
                x ^= between
        return x ^ (x >> 14)

    return mix(low ^ key0, key1 ^ mix(high, 0))


def _splitmix(x):
    x = (x + 0x9E3779B97F4A7C15) & MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK64
    return x ^ (x >> 31)


def _drop(base, experts, seed, density, rescale):
    dropped = []
    for (name, _), delta in zip(experts.items(), _deltas(base, experts), strict=True):
        one = {}
        for path, x in delta.items():
            mask = keep_mask(seed, name, path, x.size, density).reshape(x.shape)
            one[path] = np.where(mask, x / density if rescale else x, 0)
        dropped.append(one)
    return dropped


def _deltas(base, experts):
    return [{p: e[p] - base[p] for p in base} for e in experts.values()]


def _weighted_sum(deltas, weights):
    return {
        path: sum(w * d[path] for w, d in zip(weights, deltas, strict=True))
        for path in deltas[0]
    }


def _add(base, merged, scale):
    return {path: base[path] + scale * merged[path] for path in base}


def model_stock(base, experts, seed, scale):
    del seed
    deltas, merged = _deltas(base, experts), {}
    for path in base:
        vectors = [d[path].ravel() for d in deltas]
        cosines = []
        for i in range(len(vectors)):
            for j in range(i):
                a, b = vectors[i], vectors[j]
                length = np.sqrt((a @ a) * (b @ b))
                cosines.append(a @ b / length if length else 0.0)
        count = len(vectors)
        if count == 1:
            ratio = 1.0
        else:
            mean = np.mean(cosines)
            below = 1 + (count - 1) * mean
            ratio = count * mean / below if below else 0.0
        merged[path] = ratio * sum(d[path] for d in deltas) / count
    return _add(base, merged, scale)


def fisher(base, experts, seed, weights, floor, statistics):
    del base, seed
    names, merged = list(experts), {}
    for path in experts[names[0]]:
        shares = [
            w * np.maximum(statistics[n][path], floor)
            for w, n in zip(weights, names, strict=True)
        ]
        top = sum(s * experts[n][path] for s, n in zip(shares, names, strict=True))
        merged[path] = top / sum(shares)
    return merged


def regmean(base, experts, seed, weights, off_diagonal, statistics):
    del base
    merged = average(None, experts, seed, weights)
    for path in next(iter(statistics.values())):
        shape = merged[path].shape
        stack = merged[path].reshape(-1, *shape[-2:]).copy()
        for i in range(len(stack)):
            total, right = 0.0, 0.0
            for w, name in zip(weights, experts, strict=True):
                gram = statistics[name][path]
                n = gram.shape[-1]
                gram = gram.reshape(-1, n, n)[i]
                gram = w * np.where(np.eye(n), gram, off_diagonal * gram)
                total = total + gram
                right = right + gram @ experts[name][path].reshape(stack.shape)[i]
            live = np.diag(total) > 0
            solved = np.linalg.solve(total[live][:, live], right[live])
            stack[i][live] = solved
        merged[path] = stack.reshape(shape)
    return merged


def consensus_ta(base, experts, seed, weights, scale, mask_scale, agree):
    del seed
    deltas, merged = _deltas(base, experts), {}
    for path in base:
        own = np.array([w * d[path] for w, d in zip(weights, deltas, strict=True)])
        total = own.sum(axis=0)
        masks = np.abs(own) > mask_scale * np.abs(total - own)
        merged[path] = np.where(masks.sum(axis=0) >= agree, total, 0)
    return _add(base, merged, scale)


def emr(base, experts, seed, scale):
    del seed
    merged = {}
    for path in base:
        own = np.array([e[path] - base[path] for e in experts.values()])
        sign = np.where(own.sum(axis=0) > 0, 1, -1)
        merged[path] = sign * np.where(own * sign > 0, abs(own), 0).max(axis=0)
    return _add(base, merged, scale)


def by_matrix(base, experts, weights, merge_matrices):
    """Merge every matrix, [outputs, inputs], by a function; average what is none."""
    merged = {}
    for path in base:
        deltas = [
            w * (e[path] - base[path])
            for w, e in zip(weights, experts.values(), strict=True)
        ]
        shape = deltas[0].shape
        if len(shape) - path.startswith("layers/") < 2 or not deltas[0].size:
            merged[path] = sum(deltas) / sum(weights)
            continue
        turned = "embed" not in path
        stacks = [d.reshape(-1, *shape[-2:]) for d in deltas]
        found = []
        for matrices in zip(*stacks, strict=True):
            one = merge_matrices([m.T if turned else m for m in matrices])
            found.append(one.T if turned else one)
        merged[path] = np.array(found).reshape(shape)
    return merged


def svd(matrix):
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    return u, s, v.T


def polar(matrix):
    """The pseudo-inverse's way: A (AᵀA)^(-1/2), zero where A has no directions."""
    u, s, v = svd(matrix)
    real = s > 1e-9 * s.max(initial=0)
    return u[:, real] @ v[:, real].T


def iso_c(base, experts, seed, weights, scale):
    del seed

    def flattened(matrices):
        u, s, v = svd(sum(matrices))
        return s.mean() * u @ v.T

    return _add(base, by_matrix(base, experts, weights, flattened), scale)


def iso_cts(base, experts, seed, weights, scale, common):
    del seed

    def flattened(matrices):
        n, count = min(matrices[0].shape), len(matrices)
        each = min(round((n - int(n * common)) / count), n // count)
        k = n - each * count
        u, s, v = (x[..., :k] for x in svd(sum(matrices)))
        us, ss, vs = [u], [s], [v]
        for matrix in matrices:
            parts = svd(matrix - u @ u.T @ matrix)
            for into, part in zip((us, ss, vs), parts, strict=True):
                into.append(part[..., :each])
        left, right = polar(np.hstack(us)), polar(np.hstack(vs))
        return np.concatenate(ss).mean() * left @ right.T

    return _add(base, by_matrix(base, experts, weights, flattened), scale)


def tsv_m(base, experts, seed, weights, scale):
    del seed

    def reassembled(matrices):
        rank = max(min(matrices[0].shape) // len(matrices), 1)
        u, s, v = (
            [x[..., :rank] for x in of] for of in zip(*map(svd, matrices), strict=True)
        )
        diagonal = np.diag(np.concatenate(s))
        return polar(np.hstack(u)) @ diagonal @ polar(np.hstack(v)).T

    return _add(base, by_matrix(base, experts, weights, reassembled), scale)


def wudi(base, experts, seed, scale, steps, learning_rate):
    """Adam as PyTorch has it, on the gradient of the loss as it is written."""
    del seed

    def descended(matrices):
        tau = sum(matrices)
        mean, square = np.zeros_like(tau), np.zeros_like(tau)
        for step in range(1, steps + 1):
            gradient = np.zeros_like(tau)
            for m in matrices:
                if m.any():
                    gradient += 2 * (tau - m) @ m.T @ m / (m * m).sum()
            mean = 0.9 * mean + 0.1 * gradient
            square = 0.999 * square + 0.001 * gradient**2
            root = np.sqrt(square / (1 - 0.999**step))
            tau = tau - learning_rate * mean / (1 - 0.9**step) / (root + 1e-8)
        return tau

    merged = by_matrix(base, experts, (1.0,) * len(experts), descended)
    return _add(base, merged, scale)
