"""Grades ex14_lora2.py."""
import pytest
import torch

from exercises.checks import holds, same, tensor, untouched

M, N, R1, R2 = 9, 8, 3, 2
NAMES = "P1", "P2", "Q1", "Q2"


@pytest.fixture
def factors(draw):
    return draw(M, R1), draw(M, R2), draw(R1, N), draw(R2, N)


@pytest.fixture
def orthonormal(draw):
    P, Q = torch.linalg.qr(draw(M, R1 + R2))[0], torch.linalg.qr(draw(N, R1 + R2))[0].T
    return P[:, :R1], P[:, R1:], Q[:R1], Q[R1:]


def expected_penalty(P1, P2, Q1, Q2):
    """Pair by pair: each inner product is to be 1 or 0."""
    total = 0
    for first, second in ((P1.T, P2.T), (Q1, Q2)):
        for plane in (first, second):
            for i, u in enumerate(plane):
                for j, v in enumerate(plane):
                    total = total + (u @ v - float(i == j)) ** 2
        for u in first:
            for v in second:
                total = total + (u @ v) ** 2
    return total


def test_forward_is_the_product_with_the_merged_weight(ex, factors, draw):
    P1, P2, Q1, Q2 = factors
    lam1, lam2, x = draw(R1), draw(R2), draw(2, 5, N)
    inputs = x, P1, lam1, Q1, P2, lam2, Q2
    y = tensor(untouched(inputs, lambda: ex.added(*inputs)), (2, 5, M), "what the planes add")
    delta = P1 @ torch.diag(lam1) @ Q1 + P2 @ torch.diag(lam2) @ Q2
    same(y, x @ delta.T, "the planes must add x ΔWᵀ")
    y = ex.added(x, P1, 0 * lam1, Q1, P2, 0 * lam2, Q2)
    same(y, torch.zeros(2, 5, M), "with λ = 0 the planes add nothing")


def test_the_penalty_and_its_gradient_vanish_for_orthonormal_planes(ex, orthonormal):
    value = ex.penalty(*orthonormal)
    same(value, 0.0, "orthonormal and mutually orthogonal planes have no penalty")
    for name, gradient in zip(NAMES, ex.penalty_gradient(*orthonormal)):
        same(gradient, torch.zeros_like(gradient), f"nor does it pull at their {name}")


@pytest.mark.points(2)
def test_the_penalty_sees_every_fault(ex, orthonormal, draw):
    faults = {}
    for place, name in enumerate(NAMES):
        faults[f"{name} is too long"] = place, 1.1 * orthonormal[place]
        faults[f"{name} is too short"] = place, 0.9 * orthonormal[place]
        skew = (orthonormal[place] if name[0] == "Q" else orthonormal[place].T).clone()
        skew[0] = 0.8 * skew[0] + 0.6 * skew[1]  # of length 1 still
        faults[f"{name} has directions that are not orthogonal"] = (
            place, skew if name[0] == "Q" else skew.T)
    P1, P2, Q1, Q2 = orthonormal
    faults["P1 and P2 share a direction"] = 1, torch.cat((P1[:, :1], P2[:, 1:]), dim=1)
    faults["Q1 and Q2 share a direction"] = 3, torch.cat((Q1[:1], Q2[1:]))
    for fault, (place, factor) in faults.items():
        faulty = [*orthonormal]
        faulty[place] = factor
        value = ex.penalty(*faulty)
        holds(float(value) > 1e-6, f"{fault}, and the penalty is {float(value):.2g}")
        same(value, expected_penalty(*faulty), f"the penalty where {fault}")


def test_the_penalty_of_any_factors(ex, factors):
    value = tensor(untouched(factors, lambda: ex.penalty(*factors)), (), "the penalty")
    same(value, expected_penalty(*factors), "the penalty must be the sum of its six terms")


@pytest.mark.points(3)
def test_the_gradient_is_that_of_autograd(ex, factors):
    leaves = [factor.clone().requires_grad_() for factor in factors]
    expected_penalty(*leaves).backward()
    found = untouched(factors, lambda: ex.penalty_gradient(*factors))
    holds(len(found) == 4, f"four gradients are wanted, not {len(found)}")
    for name, mine, leaf in zip(NAMES, found, leaves):
        tensor(mine, leaf.shape, f"the gradient for {name}")
        same(mine, leaf.grad, f"the gradient for {name} must be what autograd finds")


@pytest.mark.points(2)
def test_pruning_keeps_the_most_important_ranks_whole(ex, draw):
    lam = torch.tensor([4.0, -0.5, 0.1, 1.5, -1.0], dtype=torch.float64)
    grad = torch.tensor([0.01, -2.0, 3.0, -1.5, 0.05], dtype=torch.float64)
    order = draw(5).argsort()
    lam, grad = lam[order], grad[order]
    P, Q = torch.linalg.qr(draw(M, 5))[0], torch.linalg.qr(draw(N, 5))[0].T
    for keep in (1, 2, 3, 5):
        inputs = P, lam, Q, grad
        P_left, lam_left, Q_left = untouched(inputs, lambda: ex.pruned(*inputs, keep))
        tensor(P_left, (M, keep), "P"), tensor(lam_left, (keep,), "λ")
        tensor(Q_left, (keep, N), "Q")
        least = (lam * grad).abs().sort(descending=True).values[keep - 1]
        others_off = torch.where((lam * grad).abs() >= least, lam, 0)
        same(P_left @ torch.diag(lam_left) @ Q_left, P @ torch.diag(others_off) @ Q,
             f"with {keep} of 5 ranks kept, ΔW must be what it is with the others' λ at 0")
        I = torch.eye(keep, dtype=torch.float64)
        same(P_left.T @ P_left, I, "what is left of an orthonormal P stays orthonormal")
        same(Q_left @ Q_left.T, I, "what is left of an orthonormal Q stays orthonormal")
