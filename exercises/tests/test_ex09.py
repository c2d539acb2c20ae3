"""Grades ex09_rac_lora.py."""
import pytest
import torch

from exercises.tests.checks import different, holds, same, several, tensor

M, N, R, S = 6, 5, 2, 1.7


@pytest.fixture
def seed(draw):
    return int(1e6 * draw(1).abs().item())


@pytest.fixture
def quadratic(draw):
    """f(W) = ½ tr((W − W*) C (W − W*)ᵀ) with C's eigenvalues from 1 to 2 -> W*, C, 1/L."""
    Q = torch.linalg.qr(draw(N, N))[0]
    return draw(M, N), Q @ torch.diag(torch.linspace(1, 2, N, dtype=Q.dtype)) @ Q.T, 1 / 2


def loss(W, quadratic):
    best, C, _ = quadratic
    return ((W - best) @ C * (W - best)).sum().item() / 2


def onto(columns):
    """The projection onto the columns that are not zero, by an SVD."""
    U, sizes, _ = torch.linalg.svd(columns, full_matrices=False)
    U = U[:, sizes > 1e-9]
    return U @ U.T


def with_zero_column(B):
    return torch.cat((B[:, :1], torch.zeros_like(B[:, :1]), B[:, 1:]), dim=1)


def with_sum_of_columns(B):
    return torch.cat((B, B.sum(dim=1, keepdim=True)), dim=1)


def test_projection_is_one(ex, draw):
    for B in (draw(M, R), draw(M, R) * 1e-3 ** torch.arange(R), with_zero_column(draw(M, R)),
              with_sum_of_columns(draw(M, R))):
        H = tensor(ex.projection(B), (M, M), "H")
        same(H @ H, H, "H H must be H", tolerance=1e-8)
        same(H, H.T, "H must be symmetric", tolerance=1e-8)
        same(H @ B, B, "H must keep B's columns", tolerance=1e-8)
        same(H.trace(), R, "H's trace must be the number of B's independent columns",
             tolerance=1e-8)


def test_frozen_factor_is_orthonormal_and_its_seeds(ex, seed):
    B = tensor(ex.frozen_factor(M, R, seed), (M, R), "B")
    holds(not ex.drew, "frozen_factor seeds or uses random numbers that everybody shares: make a "
                       "torch.Generator of its own")
    same(B.T @ B, torch.eye(R, dtype=B.dtype), "BᵀB must be I")
    same(ex.frozen_factor(M, R, seed), B, "the same seed must give the same B")
    other = ex.frozen_factor(M, R, seed + 1)
    different(onto(other), onto(B), "another seed must give another B, with other columns")
    ex.reload()
    same(ex.frozen_factor(M, R, seed), B, "the same seed must give the same B in another run")


@pytest.mark.points(2)
def test_frozen_factor_favours_no_direction(ex, seed):
    draws = 400
    Hs = torch.stack([onto(tensor(ex.frozen_factor(M, R, seed + i), (M, R), "B"))
                      for i in range(draws)])
    unit = R * (M - R) / (M + 2)  # the variances are those of a uniform random subspace's H
    variances = torch.full((M, M), unit / (M * (M - 1))).fill_diagonal_(2 * unit / M ** 2)
    errors = (Hs.mean(dim=0) - R / M * torch.eye(M)).abs() / (variances / draws).sqrt()
    worst = errors.max().item()
    holds(worst < 8, f"over {draws} seeds the mean of H must be (r/m)·I: one entry is {worst:.1f} "
                     "standard errors away from it, where 8 are allowed")
    spread = Hs.var(dim=0) / variances  # 1 in the mean, and here within 1 ± 0.5 except by chance
    holds(bool((spread > 0.4).all() and (spread < 2.2).all()),
          f"over {draws} seeds the entries of H must vary as those of a random subspace do: the "
          f"variance is {spread.min():.2g} to {spread.max():.2g} times as large")
    repeats = torch.pdist(Hs.flatten(1)).min().item()
    holds(repeats > 1e-4, "two of the seeds have the same subspace: it is one of a few")


@pytest.mark.points(3)
def test_direction_moves_the_weight_by_the_projected_gradient(ex, draw):
    G = draw(M, N)
    for B in (draw(M, R), draw(M, R) * 1e-3 ** torch.arange(R), with_zero_column(draw(M, R)),
              with_sum_of_columns(draw(M, R))):
        grad_A = S * B.T @ G
        D = tensor(ex.direction(grad_A, B, S), grad_A.shape, "D")
        same(S * B @ D, onto(B) @ G, "s·B·D must be H G, the part of G in the span of B's columns",
             tolerance=1e-8)


def test_restart_keeps_the_layer_and_draws_a_new_factor(ex, draw, seed):
    W0, A, B = draw(M, N), draw(R, N), draw(M, R)
    found = several(ex.restart(W0, A, B, S, seed), 3, "restart")
    holds(not ex.drew, "restart seeds or uses random numbers that everybody shares")
    new_W0, new_A, new_B = [tensor(value, like.shape, name)
                            for value, like, name in zip(found, (W0, A, B), ("W0", "A", "B"))]
    same(new_W0 + S * new_B @ new_A, W0 + S * B @ A, "the layer's weight must not move")
    holds(not new_A.any(), f"A must start at zero: its norm is {new_A.norm():.2g}")
    same(new_B, ex.frozen_factor(M, R, seed), "the new B must be the seed's")
    different(onto(new_B), onto(B), "the new B must be another than the old one")


@pytest.mark.points(2)
def test_a_chain_reaches_the_solution_and_the_loss_only_falls(ex, draw, seed, quadratic):
    best, C, lr = quadratic
    W, A, B = draw(M, N), torch.zeros(R, N, dtype=C.dtype), draw(M, R)
    start = before = loss(W, quadratic)
    for link in range(200):
        G = (W - best) @ C
        promised = lr / 2 * (onto(B) @ G).square().sum().item()
        A = A - lr * tensor(ex.direction(S * B.T @ G, B, S), A.shape, "D")
        after = loss(W + S * B @ A, quadratic)
        holds(after <= before - promised + 1e-9 * start,
              f"in link {link + 1} the loss must fall by {promised:.3g} or more: it went from "
              f"{before:.6g} to {after:.6g}")
        W, A, B = several(ex.restart(W, A, B, S, seed + link), 3, "restart")
        before = after
    holds(after < 1e-6 * start, f"200 links must reach the solution: the loss fell from {start:.3g}"
                                f" to {after:.3g} only")
