"""Reference numbers for `crates/adapter/tests/compose.rs`: the methods of composing written down in NumPy, in f64.

    python tests/golden/adapters/make_compose.py > tests/golden/adapters/compose.json

Members are made of `numbers`, which the test makes too. Two layers: one with a member in each term, one convolution.
"""

import json

import numpy as np

SCALES = [0.8, -0.5, 1.5]
# (out, in) and for each member (rank, alpha), or None if it does not change the layer
LAYERS = {"linear": ((9, 7), [(2, 3.0), (3, None), (1, 2.0)]), "conv": ((5, 3 * 9), [(2, 1.0), None, (2, 4.0)])}
DENSITY = 0.4


def numbers(count, seed):
    return ((np.arange(count) * 7919 + seed) % 1009 / 504.5 - 1).astype(np.float32).astype(float)


def factors(layer):
    (out, width), members = LAYERS[layer]
    made = []
    for index, member in enumerate(members):
        if member is None:
            made.append(None)
            continue
        rank, alpha = member
        up = numbers(out * rank, 401 + 97 * index).reshape(out, rank)
        down = numbers(rank * width, 17 + 53 * index).reshape(rank, width)
        made.append((up * SCALES[index] * ((alpha or rank) / rank), down))
    return made


def trim(values):
    kept = np.zeros(values.size)
    order = np.argsort(-np.abs(values).ravel(), kind="stable")[: int(DENSITY * values.size)]
    kept[order] = values.ravel()[order]
    return kept.reshape(values.shape)


def ties(values):
    values = np.stack([trim(value) for value in values])
    elected = np.where(values.sum(0) >= 0, 1, -1)
    agrees = np.sign(values) == elected
    return (values * agrees).sum(0) / np.maximum(agrees.sum(0), 1)


def svd_to(rank, matrix):
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def knots(changes, merge):
    u, s, vt = np.linalg.svd(np.concatenate(changes, 1), full_matrices=False)
    parts = np.split(s[:, None] * vt, len(changes), 1)
    keep = s > s[0] * 1e-9
    return u[:, keep] @ merge([part[keep] for part in parts])


def budget(changes, beta):
    strongest = max(np.linalg.norm(change, 2) for change in changes)
    return sum(changes) * min(1, beta * strongest / np.linalg.norm(sum(changes), 2))


def inputs(member):
    return numbers(7 * 11, 5 + 31 * member).reshape(7, 11) * [1.0, 0.3, 2.0][member]


def in_f32(matrix):  # as it is recorded
    return matrix.astype(np.float32).astype(float)


def fused(ridge):
    members = factors("linear")
    grams = [inputs(member) @ inputs(member).T for member in range(3)]
    gram = in_f32(sum(grams))
    right = sum(up @ in_f32(down @ gram) for (up, down), gram in zip(members, grams))
    return np.linalg.solve(gram + ridge * np.trace(gram) / 7 * np.eye(7), right.T).T


golden = {}
for layer in LAYERS:
    present = [member for member in factors(layer) if member]
    changes = [up @ down for up, down in present]
    total = sum(changes)
    golden[layer] = {
        "sum": total,
        "svd rank 2": svd_to(2, total),
        "ties": ties(changes),
        "ties rank 2": svd_to(2, ties(changes)),
        "knots": knots(changes, ties),
        "knots rank 2": svd_to(2, knots(changes, ties)),
        "budget 1": budget(changes, 1.0),
        "budget 0.5": budget(changes, 0.5),
        "sigma of sum": np.linalg.svd(total)[1],
        "sigma of members": np.array([np.linalg.norm(change, 2) for change in changes]),
        "squares": np.array([np.sum(change**2) for change in changes]),
    }
golden["linear"]["fusion ridge 1e-4"] = fused(1e-4)
golden["linear"]["fusion ridge 0.1"] = fused(0.1)


def orthonormal(matrix, rank):
    u, _, vt = np.linalg.svd(matrix)
    return u[:, :rank], vt[:rank].T


pairs = {}
changes = [up @ down for up, down in factors("linear")]
ranks = [2, 3, 1]
for first in range(3):
    for second in range(first + 1, 3):
        a, b = orthonormal(changes[first], ranks[first]), orthonormal(changes[second], ranks[second])
        smaller = min(ranks[first], ranks[second])
        inner = np.sum(changes[first] * changes[second])
        pairs[f"{first} {second}"] = np.array([
            np.sum((a[1].T @ b[1]) ** 2) / smaller,
            np.sum((a[0].T @ b[0]) ** 2) / smaller,
            inner / np.linalg.norm(changes[first]) / np.linalg.norm(changes[second]),
        ])
golden["pairs"] = pairs
print(json.dumps(golden, default=lambda array: [float(f"{value:.9g}") for value in array.ravel()], indent=None))
