"""Answers to exercise 4 that the grader must tell from right ones, and one more right one."""
WRONG = {
    "B takes A's directions": ("Vh[r:2 * r]", "Vh[:r]"),
    "B takes the last directions": ("Vh[r:2 * r]", "Vh[-r:]"),
    "B is made of V's rows, not its columns": (
        "Vh[r:2 * r]", "torch.linalg.svd(G)[2].T[r:2 * r]"),
    "c has the other side's width": ("G.shape[1] ** 0.25", "G.shape[0] ** 0.25"),
    "gamma has no root": ("gamma ** 0.5", "gamma"),
    "the singular values are left in": ("U, _, Vh = torch.linalg.svd(G, full_matrices=False)",
                                        "U, S, Vh = torch.linalg.svd(G, full_matrices=False)\n"
                                        "    U = U * S"),
    "s is LoRA's": ("s = alpha / r ** 0.5", "s = alpha / r"),
    "the start is added": ("W - s * A @ B", "W + s * A @ B"),
    "W stays": ("return W - s * A @ B, A, B", "return W, A, B"),
}

RIGHT = '''
import torch


def factors(G, r, gamma):
    c2 = G.shape[1] ** 0.5 / gamma
    P, Q = torch.linalg.eigh(G @ G.T)[1], torch.linalg.eigh(G.T @ G)[1]
    return -c2 ** 0.5 * P[:, -r:], c2 ** 0.5 * Q[:, -2 * r:-r].T


def start_from(W, G, r, alpha, gamma):
    A, B = factors(G, r, gamma)
    return torch.addmm(W, A, B, alpha=-alpha * r ** -0.5), A, B
'''
