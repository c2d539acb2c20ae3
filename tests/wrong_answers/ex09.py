"""Wrong answers to exercise 9, and right ones in another style, laid over the solution."""

# wrong: B's lengths stay in H
def projection(B):
    return B @ B.T

# wrong: H is that of the rows
def projection(B):
    return torch.nn.functional.pad(torch.linalg.pinv(B) @ B, (0, len(B) - B.shape[1]) * 2)

# wrong: dependent columns have no inverse
def projection(B):
    return B @ torch.linalg.inv(B.T @ B) @ B.T

# wrong: only zero columns are taken for dependent
def projection(B):
    return (lambda C: C @ torch.linalg.inv(C.T @ C) @ C.T)(B[:, B.norm(dim=0) > 0])

# wrong: B favours a direction
def frozen_factor(m, r, seed):
    generator = torch.Generator().manual_seed(seed)
    columns = torch.rand(m, r, dtype=torch.float64, generator=generator)
    return torch.linalg.qr(columns)[0]

# wrong: B's columns are not orthonormal
def frozen_factor(m, r, seed):
    generator = torch.Generator().manual_seed(seed)
    columns = torch.randn(m, r, dtype=torch.float64, generator=generator)
    return columns / columns.norm(dim=0)

# wrong: the seed is not used
def frozen_factor(m, r, seed):
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(m, r, dtype=torch.float64, generator=generator)
    return torch.linalg.qr(columns)[0]

# wrong: B's lengths are not allowed for
def direction(grad_A, B, s):
    return grad_A / s ** 2

# wrong: BᵀB in place of its inverse
def direction(grad_A, B, s):
    return B.T @ B @ grad_A / s ** 2

# wrong: one s is forgotten
def direction(grad_A, B, s):
    return torch.linalg.pinv(B.T @ B) @ grad_A / s

# wrong: A is not reset
def restart(W0, A, B, s, seed):
    new_B = frozen_factor(*B.shape, seed).to(B)
    return W0 + s * B @ A, A.clone(), new_B

# wrong: the old B is kept
def restart(W0, A, B, s, seed):
    new_B = frozen_factor(*B.shape, seed).to(B)
    return W0 + s * B @ A, torch.zeros_like(A), B.clone()

# wrong: the merge forgets the scale
def restart(W0, A, B, s, seed):
    new_B = frozen_factor(*B.shape, seed).to(B)
    return W0 + B @ A, torch.zeros_like(A), new_B

# wrong: the directions are coordinate axes
def frozen_factor(m, r, seed):
    generator = torch.Generator().manual_seed(seed)
    axes = torch.randperm(m, generator=generator)[:r]
    return torch.eye(m, dtype=torch.float64)[:, axes]

# wrong: the directions are columns of one orthogonal matrix
def frozen_factor(m, r, seed):
    generator = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(m, m, dtype=torch.float64, generator=generator))[0]
    columns = torch.randperm(m, generator=torch.Generator().manual_seed(seed))[:r]
    return Q[:, columns]

# wrong: the random numbers that everybody shares are seeded
def frozen_factor(m, r, seed):
    torch.manual_seed(seed)
    return torch.linalg.qr(torch.randn(m, r, dtype=torch.float64))[0]

# wrong: a seed's factor is remembered, not made again
kept = {}

def frozen_factor(m, r, seed):
    if (m, r, seed) not in kept:
        kept[m, r, seed] = torch.linalg.qr(torch.randn(m, r, dtype=torch.float64))[0]
    return kept[m, r, seed]

# wrong: a short column is taken for a zero one
def projection(B):
    return B @ torch.linalg.pinv(B, rtol=0.1)

# right: another style
import torch

def projection(B):
    U, sizes, _ = torch.linalg.svd(B, full_matrices=False)
    return (U * (sizes > 1e-12 * sizes.max())) @ U.T

def frozen_factor(m, r, seed):
    numbers = torch.Generator().manual_seed(seed)
    square = torch.randn(m, m, dtype=torch.float64, generator=numbers)
    return torch.linalg.svd(square)[0][:, :r]

def direction(grad_A, B, s):
    p, V = torch.linalg.eigh(B.T @ B)
    inverse = torch.where(p > 1e-12 * p.max(), 1 / p, 0)
    return V @ (inverse[:, None] * (V.T @ grad_A)) / s / s

def restart(W0, A, B, s, seed):
    return W0 + (s * B) @ A, 0 * A, frozen_factor(len(B), len(A), seed).to(B.dtype)
