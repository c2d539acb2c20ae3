"""Answers to exercise 1 that the grader must tell from right ones, and one more right one."""
WRONG = {  # what is wrong: (what the solution says, what it says instead)
    "the scale is missing": ("x @ W + s * (x @ A) @ B", "x @ W + (x @ A) @ B"),
    "alpha is not divided by the rank": (
        "s = alpha / A.shape[1]\n    return", "s = alpha\n    return"),
    "alpha is divided by the root of the rank": (
        "s = alpha / A.shape[1]\n    return", "s = alpha / A.shape[1] ** 0.5\n    return"),
    "A's gradient lacks the scale": ("grad_A = s * x.T", "grad_A = x.T"),
    "x's gradient passes through W alone": (" + s * thin @ A.T", ""),
}

RIGHT = '''
import torch


def forward(x, W, A, B, alpha):
    return torch.einsum("ni,io->no", x, W + alpha * (A @ B) / len(B))


def gradients(x, W, A, B, alpha, grad_y):
    s = alpha / len(B)
    dense = x.T @ grad_y
    return grad_y @ (W + s * A @ B).T, s * dense @ B.T, s * A.T @ dense
'''
