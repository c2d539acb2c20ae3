"""Grades ex14_lora2.py."""
import pytest
import torch

from exercises.tests.checks import holds, same, several, tensor

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
    y = tensor(ex.added(*inputs), (2, 5, M), "what the planes add")
    delta = P1 @ torch.diag(lam1) @ Q1 + P2 @ torch.diag(lam2) @ Q2
    same(y, x @ delta.T, "the planes must add x ΔWᵀ")
    y = ex.added(x, P1, 0 * lam1, Q1, P2, 0 * lam2, Q2)
    same(y, torch.zeros(2, 5, M), "with λ = 0 the planes add nothing")


def test_the_penalty_and_its_gradient_vanish_for_orthonormal_planes(ex, orthonormal):
    value = ex.penalty(*orthonormal)
    same(value, 0.0, "orthonormal and mutually orthogonal planes have no penalty")
    gradients = several(ex.penalty_gradient(*orthonormal), 4, "penalty_gradient")
    for name, gradient in zip(NAMES, gradients):
        same(gradient, torch.zeros_like(gradient), f"nor does it pull at their {name}")


@pytest.mark.points(2)
def test_the_penalty_is_the_sum_of_its_terms(ex, factors, orthonormal, draw):
    value = tensor(ex.penalty(*factors), (), "the penalty")
    same(value, expected_penalty(*factors), "the penalty must be the sum of its six terms")
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


@pytest.mark.points(3)
def test_the_gradient_is_that_of_autograd(ex, factors):
    leaves = [factor.clone().requires_grad_() for factor in factors]
    expected_penalty(*leaves).backward()
    found = several(ex.penalty_gradient(*factors), 4, "penalty_gradient")
    for name, mine, leaf in zip(NAMES, found, leaves):
        tensor(mine, leaf.shape, f"the gradient for {name}")
        same(mine, leaf.grad, f"the gradient for {name} must be what autograd finds")


def pruned(ex, P, lam, Q, grad, keep):
    found = several(ex.pruned(P, lam, Q, grad, keep), 3, "pruned")
    P_left, lam_left, Q_left = found
    tensor(P_left, (M, keep), "P"), tensor(lam_left, (keep,), "λ")
    tensor(Q_left, (keep, N), "Q")
    return found


@pytest.mark.points(2)
def test_pruning_keeps_the_most_important_ranks_whole(ex, draw):
    lam = torch.tensor([4.0, -0.5, 0.1, 1.5, -1.0], dtype=torch.float64)
    grad = torch.tensor([0.01, -2.0, 3.0, -1.5, 0.05], dtype=torch.float64)
    order = draw(5).argsort()
    lam, grad = lam[order], grad[order]
    lengths = 1 / (lam * grad) ** 2  # the least important rank has the longest vectors
    P = torch.nn.functional.normalize(draw(M, 5), dim=0) * lengths
    Q = torch.nn.functional.normalize(draw(5, N), dim=1) * lengths[:, None]
    for keep in (1, 2, 3, 5):
        found = pruned(ex, P, lam, Q, grad, keep)
        best = (lam * grad).abs().argsort(descending=True)[:keep].sort().values
        ranks = [[P[:, i], lam[i], Q[i]] for i in best]
        for P_i, lam_i, Q_i in zip(found[0].T, found[1], found[2]):
            whole = any(torch.equal(P_i, p) and torch.equal(lam_i, l) and torch.equal(Q_i, q)
                        for p, l, q in ranks)
            holds(whole, f"with {keep} of 5 ranks kept, those of the largest |λ ∂L/∂λ| must stay, "
                         "each with its column of P, its λ and its row of Q")
        holds(len(set(found[1].tolist())) == keep, "no rank must come twice")
    for grad in (torch.zeros(5, dtype=torch.float64), 0.5 / lam):  # all are equally important
        pruned(ex, P, lam, Q, grad, 2)
