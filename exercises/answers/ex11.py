"""Answers to exercise 11 that the grader must tell from right ones, and one more right one."""
WRONG = {
    "the scale is not taken out": (
        "torch.linalg.solve(BtB, grad_A) / s ** 2", "torch.linalg.solve(BtB, grad_A) / s"),
    "X is left out": ("X = sylvester(BtB, AAt, -from_A @ A.T)", "X = torch.zeros_like(BtB)"),
    "X has the other sign in g_B": (" - B @ X", " + B @ X"),
    "the projection is left out": (
        "outside = grad_B - B @ torch.linalg.solve(BtB, B.T @ grad_B)", "outside = grad_B"),
    "the equation's sign is forgotten": ("-from_A @ A.T)", "from_A @ A.T)"),
}

RIGHT = '''
import torch


def sylvester(P, Q, R):
    I = torch.eye(len(P), dtype=P.dtype)
    flat = torch.linalg.solve(torch.kron(P, I) + torch.kron(I, Q.T.contiguous()), R.reshape(-1))
    return flat.reshape(R.shape)


def adjusted(grad_A, grad_B, A, B, s):
    left, right = torch.linalg.inv(B.T @ B), torch.linalg.inv(A @ A.T)
    P = B @ left @ B.T
    X = sylvester(B.T @ B, A @ A.T, -left @ grad_A @ A.T / s ** 2)
    I = torch.eye(len(P), dtype=P.dtype)
    return left @ grad_A / s ** 2 + X @ A, (I - P) @ grad_B @ right / s ** 2 - B @ X
'''
