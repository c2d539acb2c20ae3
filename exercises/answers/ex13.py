"""Answers to exercise 13 that the grader must tell from right ones, and one more right one."""
WRONG = {
    "a multiplication with its addition counts once": (
        '"thin": 2 * tokens * (n * m', '"thin": tokens * (n * m'),
    "the product A B is free": ("2 * n * m * (r + tokens)", "2 * n * m * tokens"),
    "the addition W + A B counts": ("2 * n * m * (r + tokens)", "2 * n * m * (r + tokens) + n * m"),
    "dY Bᵀ is paid by dX only": ('if "thin" in (dX, dA) else 0', 'if dX == "thin" else 0'),
    "Xᵀ dY is paid twice where two share it": (
        "n * tokens * m if \"dense\" in (dA, dB) else 0",
        "n * tokens * m * ((dA == \"dense\") + (dB == \"dense\"))"),
    "X A is taken from the way forward": (
        "tokens * n * r + r * tokens * m if", "r * tokens * m if"),
    "W's way to X is forgotten": ("dX = dY @ W.T + dY_Bt @ A.T", "dX = dY_Bt @ A.T"),
    "the dense way is the thin one as well": ("return X @ (W + A @ B)", "return X @ W + X @ A @ B"),
    "the thin path goes through A B": ("+ (X @ A) @ B", "+ X @ (A @ B)"),
    "dB has one order only": (
        'dB = (X @ A).T @ dY if for_dB == "thin" else A.T @ Xt_dY', "dB = (X @ A).T @ dY"),
    "dA goes by dX's word": (
        'dA = X.T @ dY_Bt if for_dA == "thin" else Xt_dY @ B.T',
        'dA = X.T @ (dY @ B.T) if for_dX == "thin" else X.T @ dY @ B.T'),
}

RIGHT = '''
import torch

WAYS = ["thin thin thin", "thin thin dense", "thin dense thin", "thin dense dense",
        "dense thin thin", "dense thin dense", "dense dense thin", "dense dense dense"]


def forward_flops(tokens, n, m, r):
    base = tokens * n * m
    return {"dense": 2 * (base + n * m * r), "thin": 2 * (base + tokens * r * (n + m))}


def backward_flops(tokens, n, m, r):
    flops = {}
    for way in WAYS:
        dX, dA, dB = (word == "dense" for word in way.split())
        wide = 1 + (dA or dB)
        small = dX + dA + dB
        along_n = (not dX) + (not dA) + (not dB)
        along_m = (not (dX and dA)) + (not dB)
        flops[way] = 2 * (tokens * n * m * wide + n * m * r * small
                          + tokens * r * (n * along_n + m * along_m))
    return flops


def forward(X, W, A, B, way):
    if way == "dense":
        return X @ torch.addmm(W, A, B)
    return torch.addmm(X @ W, X @ A, B)


def backward(X, W, A, B, dY, way):
    dX, dA, dB = way.split()
    results = []
    if dX == "dense":
        results.append(dY @ torch.addmm(W, A, B).T)
    else:
        results.append(torch.addmm(dY @ W.T, dY @ B.T, A.T))
    dense = X.T @ dY
    results.append(dense @ B.T if dA == "dense" else X.T @ (dY @ B.T))
    results.append(A.T @ dense if dB == "dense" else ((X @ A).T @ dY))
    return results
'''
