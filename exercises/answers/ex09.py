"""Answers to exercise 9 that the grader must tell from right ones, and one more right one."""
WRONG = {
    "B's lengths stay in H": ("return B @ torch.linalg.pinv(B)", "return B @ B.T"),
    "H is that of the rows": (
        "return B @ torch.linalg.pinv(B)",
        "return torch.nn.functional.pad(torch.linalg.pinv(B) @ B, (0, len(B) - B.shape[1]) * 2)"),
    "dependent columns have no inverse": (
        "return B @ torch.linalg.pinv(B)", "return B @ torch.linalg.inv(B.T @ B) @ B.T"),
    "only zero columns are taken for dependent": (
        "return B @ torch.linalg.pinv(B)",
        "return (lambda C: C @ torch.linalg.inv(C.T @ C) @ C.T)(B[:, B.norm(dim=0) > 0])"),
    "B favours a direction": ("columns = torch.randn(", "columns = torch.rand("),
    "B's columns are not orthonormal": (
        "torch.linalg.qr(columns)[0]", "columns / columns.norm(dim=0)"),
    "the seed is not used": (".manual_seed(seed)", ".manual_seed(0)"),
    "B's lengths are not allowed for": (
        "torch.linalg.pinv(B.T @ B) @ grad_A", "grad_A"),
    "BᵀB in place of its inverse": ("torch.linalg.pinv(B.T @ B) @ grad_A", "B.T @ B @ grad_A"),
    "one s is forgotten": ("grad_A / s ** 2", "grad_A / s"),
    "A is not reset": ("torch.zeros_like(A), new_B", "A.clone(), new_B"),
    "the old B is kept": ("torch.zeros_like(A), new_B", "torch.zeros_like(A), B.clone()"),
    "the merge forgets the scale": ("return W0 + s * B @ A", "return W0 + B @ A"),
}

RIGHT = '''
import torch


def projection(B):
    U, sizes, _ = torch.linalg.svd(B, full_matrices=False)
    return (U * (sizes > 1e-12 * sizes.max())) @ U.T


def frozen_factor(m, r, seed):
    torch.manual_seed(seed)
    return torch.linalg.svd(torch.randn(m, m, dtype=torch.float64))[0][:, :r]


def direction(grad_A, B, s):
    p, V = torch.linalg.eigh(B.T @ B)
    inverse = torch.where(p > 1e-12 * p.max(), 1 / p, 0)
    return V @ (inverse[:, None] * (V.T @ grad_A)) / s / s


def restart(W0, A, B, s, seed):
    return W0 + (s * B) @ A, 0 * A, frozen_factor(len(B), len(A), seed).to(B.dtype)
'''
