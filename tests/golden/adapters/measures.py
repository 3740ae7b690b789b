"""Figures of crates/adapter/tests/inspection.rs and resize.rs: python measures.py > measures.json (NumPy 2)."""

import json

import numpy as np


def numbers(count, seed):
    return ((np.arange(count) * 7919 + seed) % 1009 / 504.5 - 1).astype(np.float32).astype(float)


def change(out, rank, width, alpha, seed):
    down, up = numbers(rank * width, seed).reshape(rank, width), numbers(out * rank, seed + 384).reshape(out, rank)
    return alpha / rank * up @ down


def measures(delta, weight):
    u, s, vt = np.linalg.svd(delta, full_matrices=False)
    k = np.linalg.matrix_rank(delta)
    u, s, vt = u[:, :k], s[:k], vt[:k]
    shares = s / s.sum()
    projected = np.linalg.norm(u.T @ weight @ vt.T)
    return {
        "frobenius": np.linalg.norm(delta),
        "spectral": s[0],
        "stable_rank": (s**2).sum() / s[0] ** 2,
        "effective_rank": np.exp(-(shares * np.log(shares)).sum()),
        "singular_values": s.tolist(),
        "share": np.linalg.norm(delta) / np.linalg.norm(weight),
        "projected": projected,
        "amplification": np.linalg.norm(delta) / projected,
    }


def phi(first, second):
    table = lambda i, j: np.linalg.norm(first[:, :i].T @ second[:, :j]) ** 2 / min(i, j)
    return [[table(i + 1, j + 1) for j in range(second.shape[1])] for i in range(first.shape[1])]


def similarity(first, second):
    ranks = [np.linalg.matrix_rank(delta) for delta in (first, second)]
    (u1, _, vt1), (u2, _, vt2) = [np.linalg.svd(delta) for delta in (first, second)]
    return {
        "input": phi(vt1[: ranks[0]].T, vt2[: ranks[1]].T),
        "output": phi(u1[:, : ranks[0]], u2[:, : ranks[1]]),
        "cosine": (first * second).sum() / np.linalg.norm(first) / np.linalg.norm(second),
    }


linear, conv = change(20, 3, 30, 2, 17), change(10, 4, 45, 6, 29)
other = change(20, 5, 30, 5, 501)
tail = lambda k: np.sqrt((np.linalg.svd(other)[1][k:] ** 2).sum()) / np.linalg.norm(other)
print(
    json.dumps(
        {
            "linear": measures(linear, numbers(600, 5).reshape(20, 30)),
            "conv": measures(conv, numbers(450, 6).reshape(10, 45)),
            "pair": similarity(linear, other),
            "tails": [tail(k) for k in range(1, 5)],
            "norm_shares": np.sqrt(np.cumsum(np.linalg.svd(other)[1][:5] ** 2)).tolist(),
            "value_shares": np.cumsum(np.linalg.svd(other)[1][:5]).tolist(),
            "whole": measures(numbers(600, 5).reshape(20, 30), linear),
        },
        indent=1,
    )
)
