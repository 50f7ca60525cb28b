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


def ties_mergekit(base, experts, seed, weights, density, scale, normalize, rescale):
    del seed
    kept = []
    for delta in _deltas(base, experts):
        one = {}
        for path, x in delta.items():
            share = max(1, int(density * x.size)) / x.size
            one[path] = _trim_vector(x.ravel(), share + 1e-12, "exact").reshape(x.shape)
        kept.append(one)
    kept = _matched(base, experts, kept, rescale)
    return _add(base, _elected(kept, weights, normalize), scale)


def dare_linear_mergekit(
    base, experts, seed, weights, density, scale, normalize, rescale
):
    dropped = _matched(
        base, experts, _drop(base, experts, seed, density, False), rescale
    )
    merged = _weighted_sum(dropped, weights)
    return _add(base, _normalized(merged, weights, normalize), scale)


def dare_ties_mergekit(
    base, experts, seed, weights, density, scale, normalize, rescale
):
    dropped = _matched(
        base, experts, _drop(base, experts, seed, density, False), rescale
    )
    return _add(base, _elected(dropped, weights, normalize), scale)


def _matched(base, experts, thinned, rescale):
    """Give each leaf the L1 norm of the task vector it was made of."""
    if not rescale:
        return thinned
    found = []
    for delta, thin in zip(_deltas(base, experts), thinned, strict=True):
        one = {}
        for path, x in thin.items():
            before, after = np.abs(delta[path]).sum(), np.abs(x).sum()
            one[path] = x * (before / after if min(before, after) >= 1e-7 else 1)
        found.append(one)
    return found


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


def model_stock(base, experts, seed, scale, scope, least=0.0):
    del seed
    deltas, merged = _deltas(base, experts), {}
    for path, start in base.items():
        split = _rows if scope == "row" else lambda x: x.reshape(1, -1)
        vectors, done = [split(d[path]) for d in deltas], []
        for rows in zip(*vectors, strict=True):
            done.append(_stock_ratio(rows, least) * np.mean(rows, axis=0))
        merged[path] = np.array(done).reshape(start.shape)
    return _add(base, merged, scale)


def _stock_ratio(vectors, least):
    count, cosines = len(vectors), []
    for i in range(count):
        for j in range(i):
            a, b = vectors[i], vectors[j]
            length = max(np.sqrt((a @ a) * (b @ b)), least)
            cosines.append(a @ b / length if length else 0.0)
    if count == 1:
        return 1.0
    below = 1 + (count - 1) * np.mean(cosines)
    return count * np.mean(cosines) / below if abs(below) > least else 0.0


def model_stock_mergekit(base, experts, seed, filter_wise):
    scope = "row" if filter_wise else "tensor"
    return model_stock(base, experts, seed, 1.0, scope, least=1e-6)


def _rows(x):
    return x.reshape(-1, x.shape[-1] if x.ndim else 1)


def fisher(base, experts, seed, weights, floor, statistics):
    del base, seed
    names, merged = list(experts), {}
    for path in experts[names[0]]:
        known = [np.maximum(statistics[n][path], floor) for n in names]
        shares = [w * f for w, f in zip(weights, known, strict=True)]
        none = sum(shares) == 0
        shares = [np.where(none, w, s) for w, s in zip(weights, shares, strict=True)]
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


def svd(matrix, largest=0.0):
    """A direction a column; none where the singular value is 0, to rounding."""
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    real = s > 1e-9 * max(s.max(initial=0), largest)
    return u * real, s, v.T * real


def polar(matrix):
    """The pseudo-inverse's way: A (AᵀA)^(-1/2), zero where A has no directions."""
    u, _, v = svd(matrix)
    return u @ v.T


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
        u, s, v = svd(sum(matrices))
        first = s.max(initial=0)
        u, s, v = u[:, :k], s[:k], v[:, :k]
        us, ss, vs = [u], [s], [v]
        for matrix in matrices:
            largest = max(first, np.linalg.norm(matrix, 2))
            parts = svd(matrix - u @ u.T @ matrix, largest)
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


def passthrough(base, experts, seed, factor):
    del base, seed
    (model,) = experts.values()
    return {path: factor * x for path, x in model.items()}


def nearswap(base, experts, seed, t, scale):
    del seed
    (delta,) = _deltas(base, experts)
    moved = {
        path: x * np.minimum(t / np.where(x == 0, t, np.abs(x)), 1)
        for path, x in delta.items()
    }
    return _add(base, moved, scale)


def arcee_fusion(base, experts, seed, scale):
    del seed
    (delta,), moved = _deltas(base, experts), {}
    for path, x in delta.items():
        p, q = _softmax(_rows(base[path] + x)), _softmax(_rows(base[path]))
        divergence = (p * np.log(p / q)).sum(axis=1, keepdims=True)
        importance = np.abs(_rows(x)) * divergence
        ordered = np.sort(importance.ravel())
        last = importance.size - 1
        low, middle, high = (ordered[n * last // 4] for n in (1, 2, 3))
        kept = importance >= middle + 1.5 * (high - low)
        moved[path] = np.where(kept, _rows(x), 0).reshape(x.shape)
    return _add(base, moved, scale)


def _softmax(rows):
    raised = np.exp(rows - rows.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def _spherical(base, experts, scale, merge_vectors, split):
    """Merge vectors (the models', or the task vectors') and put them in their place."""
    from_base = scale is not None
    models = _deltas(base, experts) if from_base else list(experts.values())
    merged = {}
    for path, like in models[0].items():
        vectors = [split(path, m[path]) for m in models]
        done = np.array([merge_vectors(list(v)) for v in zip(*vectors, strict=True)])
        merged[path] = _unsplit(path, done, like.shape, split)
    return _add(base, merged, scale) if from_base else merged


def _whole(path, x):
    return x.reshape(1, -1)


def _row(path, x):
    return _rows(x)


def _column(path, x):
    """Of [outputs, inputs]: a row as it is stored, but for embeddings."""
    if x.ndim - path.startswith("layers/") < 2:
        return x.reshape(1, -1)
    if "embed" not in path:
        return _rows(x)
    return np.swapaxes(x, -1, -2).reshape(-1, x.shape[-2])


def _unsplit(path, done, shape, split):
    if split is not _column or len(shape) - path.startswith("layers/") < 2:
        return done.reshape(shape)
    if "embed" not in path:
        return done.reshape(shape)
    return np.swapaxes(done.reshape(*shape[:-2], shape[-1], shape[-2]), -1, -2)


def _arc(a, b, t, threshold):
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    cosine = a @ b / lengths if lengths else 1.0
    angle = np.arccos(np.clip(cosine, -1, 1))
    if abs(cosine) > threshold or np.sin(angle) < 1e-8:
        return (1 - t) * a + t * b
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def slerp(base, experts, seed, t, threshold, scale):
    del seed
    return _spherical(
        base, experts, scale, lambda v: _arc(*v, t=t, threshold=threshold), _whole
    )


def nuslerp(base, experts, seed, weights, along, scale):
    del seed
    t = weights[1] / sum(weights)
    split = {"tensor": _whole, "row": _row, "column": _column}[along]
    return _spherical(base, experts, scale, lambda v: _arc(*v, t=t, threshold=1), split)


def multislerp(base, experts, seed, weights, normalize, eps, scale):
    del seed
    weights = np.array(weights) / (sum(weights) if normalize else 1)

    def merge_vectors(vectors):
        lengths = np.array([np.linalg.norm(v) for v in vectors])
        units = [v / (n + eps) for v, n in zip(vectors, lengths, strict=True)]
        mean = sum(w * u for w, u in zip(weights, units, strict=True))
        length = np.linalg.norm(mean)
        if length < eps:
            return sum(w * v for w, v in zip(weights, vectors, strict=True))
        mean = mean / length
        # The exponential map of the mean tangent, as it is defined.
        tangent = sum(
            w * (u - (u @ mean) * mean) for w, u in zip(weights, units, strict=True)
        )
        angle = np.linalg.norm(tangent) + eps
        there = mean * np.cos(angle) + tangent * np.sin(angle) / angle
        return there * (weights @ lengths)

    return _spherical(base, experts, scale, merge_vectors, _whole)


def karcher(base, experts, seed, weights, max_iter, tol, scale):
    del seed
    weights = np.array(weights) / sum(weights)

    def merge_vectors(vectors):
        lengths = np.array([np.linalg.norm(v) for v in vectors])
        there = [i for i, n in enumerate(lengths) if n > tol]
        if len(vectors) == 1 or not there:
            return vectors[0] if len(vectors) == 1 else 0 * vectors[0]
        units = [vectors[i] / lengths[i] for i in there]
        shares = weights[there] / weights[there].sum()
        point = sum(s * u for s, u in zip(shares, units, strict=True))
        point = point / np.linalg.norm(point)
        for _ in range(max_iter):
            step = np.zeros_like(point)
            for share, unit in zip(shares, units, strict=True):
                angle = np.arccos(np.clip(unit @ point, -1, 1))
                if angle >= tol:
                    off = unit - (unit @ point) * point
                    step = step + share * angle / np.sin(angle) * off
            size = np.linalg.norm(step)
            if size < tol:
                break
            point = np.cos(size) * point + np.sin(size) / size * step
        return (weights @ lengths) * point

    return _spherical(base, experts, scale, merge_vectors, _whole)


def _banded(base, experts, density, gamma, scope):
    found = []
    for delta in _deltas(base, experts):
        one = {}
        for path, x in delta.items():
            rows = _rows(x) if scope == "row" else x.reshape(1, -1)
            one[path] = np.array([_band(row, density, gamma) for row in rows])
            one[path] = one[path].reshape(x.shape)
        found.append(one)
    return found


def _band(x, density, gamma):
    kept = int(density * x.size)
    above = min(int(gamma * x.size), x.size - kept)
    order = np.lexsort((np.arange(x.size), -np.abs(x)))[above : above + kept]
    out = np.zeros_like(x)
    out[order] = x[order]
    return out


def breadcrumbs(base, experts, seed, weights, density, gamma, scale, scope):
    del seed
    kept = _banded(base, experts, density, gamma, scope)
    return _add(base, _weighted_sum(kept, weights), scale)


def breadcrumbs_ties(base, experts, seed, weights, density, gamma, scale, scope, zero):
    del seed
    kept = _banded(base, experts, density, gamma, scope)
    return _add(base, disjoint_mean(kept, weights, zero, divide_by="weight"), scale)


def breadcrumbs_mergekit(
    base, experts, seed, weights, density, gamma, scale, normalize, rescale
):
    del seed
    kept = _banded(base, experts, density, gamma, "tensor")
    merged = _weighted_sum(_matched(base, experts, kept, rescale), weights)
    return _add(base, _normalized(merged, weights, normalize), scale)


def breadcrumbs_ties_mergekit(
    base, experts, seed, weights, density, gamma, scale, normalize, rescale
):
    del seed
    kept = _banded(base, experts, density, gamma, "tensor")
    kept = _matched(base, experts, kept, rescale)
    return _add(base, _elected(kept, weights, normalize), scale)


def _pruned(base, experts, seed, density, epsilon, rescale):
    found = []
    for (name, _), delta in zip(experts.items(), _deltas(base, experts), strict=True):
        one = {}
        for path, x in delta.items():
            chances = np.array([_chances(row, density, epsilon) for row in _rows(x)])
            chances = chances.reshape(x.shape)
            drawn = _drawn(seed, name, path, x.size).reshape(x.shape)
            kept = x / np.where(chances == 0, 1, chances) if rescale else x
            one[path] = np.where(drawn < chances, kept, 0)
        found.append(one)
    return found


def _chances(row, density, epsilon):
    if row.size == 1:
        return np.array([density])
    ranks = np.empty(row.size)
    ranks[np.argsort(np.abs(row), kind="stable")] = np.arange(row.size)
    return density - epsilon + 2 * epsilon * ranks / (row.size - 1)


def _drawn(seed, expert, path, size):
    names = zlib.crc32(expert.encode()) << 32 | zlib.crc32(path.encode())
    key = _splitmix(_splitmix(seed & MASK64) ^ names)
    hashes = [hash_index(i, key & 0xFFFFFFFF, key >> 32) for i in range(size)]
    return np.array([h >> 8 for h in hashes], float) / 2**24


def della(base, experts, seed, weights, density, epsilon, scale, zero, rescale):
    kept = _pruned(base, experts, seed, density, epsilon, rescale)
    return _add(base, disjoint_mean(kept, weights, zero, divide_by="weight"), scale)


def della_linear(base, experts, seed, weights, density, epsilon, scale, rescale):
    kept = _pruned(base, experts, seed, density, epsilon, rescale)
    return _add(base, _weighted_sum(kept, weights), scale)


def della_mergekit(
    base, experts, seed, weights, density, epsilon, scale, normalize, rescale
):
    epsilon = 0 if density in (0, 1) else epsilon
    kept = _pruned(base, experts, seed, density, epsilon, False)
    kept = _matched(base, experts, kept, rescale)
    return _add(base, _elected(kept, weights, normalize), scale)


def della_linear_mergekit(
    base, experts, seed, weights, density, epsilon, scale, normalize, rescale
):
    epsilon = 0 if density in (0, 1) else epsilon
    kept = _pruned(base, experts, seed, density, epsilon, False)
    merged = _weighted_sum(_matched(base, experts, kept, rescale), weights)
    return _add(base, _normalized(merged, weights, normalize), scale)


def sce(base, experts, seed, density, scale, least=0.0):
    del seed
    deltas, merged = _deltas(base, experts), {}
    for path, start in base.items():
        stacked = np.array([d[path].ravel() for d in deltas])
        # K³ times it, which no rounding spoils.
        variance = ((len(stacked) * stacked - stacked.sum(axis=0)) ** 2).sum(axis=0)
        if density < 1:
            kept = int(density * np.count_nonzero(variance))
            order = np.lexsort((np.arange(variance.size), -variance))[kept:]
            stacked[:, order] = 0
        energy = (stacked**2).mean(axis=1) if start.size else np.zeros(len(deltas))
        equal = energy.sum() < least or energy.sum() == 0
        weights = energy / energy.sum() if not equal else 1 / len(deltas)
        weights = np.broadcast_to(weights, len(deltas))[:, None]
        sign = np.where(stacked.sum(axis=0) >= 0, 1, -1)
        agree = stacked * sign > 0
        bottom = np.maximum((weights * agree).sum(axis=0), least)
        top = (weights * stacked * agree).sum(axis=0)
        merged[path] = (top / np.where(bottom == 0, 1, bottom)).reshape(start.shape)
    return _add(base, merged, scale)


def sce_mergekit(base, experts, seed, density):
    return sce(base, experts, seed, density, 1.0, least=1e-6)


def ram(base, experts, seed, epsilon, scale):
    return ramplus_tl(base, experts, seed, 0.0, 0.0, epsilon, scale)


def ramplus_tl(base, experts, seed, r, alpha, epsilon, scale):
    del seed
    deltas, merged = _deltas(base, experts), {}
    for path, start in base.items():
        stacked = np.array([d[path] for d in deltas])
        moved = np.abs(stacked) > epsilon
        count = moved.sum(axis=0)
        merged[path] = np.zeros_like(start)
        for x, yes in zip(stacked, moved, strict=True):
            unique, shared = (yes & (count == 1)).sum(), (yes & (count > 1)).sum()
            factor = 1 + r * min(shared / max(unique, 1e-9), alpha)
            own = np.where(count == 1, factor * x, x / np.maximum(count, 1))
            merged[path] = merged[path] + np.where(yes, own, 0)
    return _add(base, merged, scale)
