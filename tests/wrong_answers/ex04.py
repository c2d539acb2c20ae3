"""Wrong answers to exercise 4, and right ones in another style, laid over the solution."""

# wrong: B takes A's directions
def factors(G, r, gamma):
    U, _, Vh = torch.linalg.svd(G, full_matrices=False)
    c = G.shape[1] ** 0.25 / gamma ** 0.5
    return c * U[:, :r], c * Vh[:r]

# wrong: B takes the last directions
def factors(G, r, gamma):
    U, _, Vh = torch.linalg.svd(G, full_matrices=False)
    c = G.shape[1] ** 0.25 / gamma ** 0.5
    return c * U[:, :r], c * Vh[-r:]

# wrong: B is made of V's rows, not its columns
def factors(G, r, gamma):
    U, _, Vh = torch.linalg.svd(G, full_matrices=False)
    c = G.shape[1] ** 0.25 / gamma ** 0.5
    return c * U[:, :r], c * torch.linalg.svd(G)[2].T[r:2 * r]

# wrong: c has the other side's width
def factors(G, r, gamma):
    U, _, Vh = torch.linalg.svd(G, full_matrices=False)
    c = G.shape[0] ** 0.25 / gamma ** 0.5
    return c * U[:, :r], c * Vh[r:2 * r]

# wrong: gamma has no root
def factors(G, r, gamma):
    U, _, Vh = torch.linalg.svd(G, full_matrices=False)
    c = G.shape[1] ** 0.25 / gamma
    return c * U[:, :r], c * Vh[r:2 * r]

# wrong: the singular values are left in
def factors(G, r, gamma):
    U, S, Vh = torch.linalg.svd(G, full_matrices=False)
    U = U * S
    c = G.shape[1] ** 0.25 / gamma ** 0.5
    return c * U[:, :r], c * Vh[r:2 * r]

# wrong: s is LoRA's
def start_from(W, G, r, alpha, gamma):
    A, B = factors(G, r, gamma)
    s = alpha / r
    return W - s * A @ B, A, B

# wrong: the start is added
def start_from(W, G, r, alpha, gamma):
    A, B = factors(G, r, gamma)
    s = alpha / r ** 0.5
    return W + s * A @ B, A, B

# wrong: W stays
def start_from(W, G, r, alpha, gamma):
    A, B = factors(G, r, gamma)
    s = alpha / r ** 0.5
    return W, A, B

# right: another style
import torch

def factors(G, r, gamma):
    c2 = G.shape[1] ** 0.5 / gamma
    P, Q = torch.linalg.eigh(G @ G.T)[1], torch.linalg.eigh(G.T @ G)[1]
    return -c2 ** 0.5 * P[:, -r:], c2 ** 0.5 * Q[:, -2 * r:-r].T

def start_from(W, G, r, alpha, gamma):
    A, B = factors(G, r, gamma)
    return torch.addmm(W, A, B, alpha=-alpha * r ** -0.5), A, B
