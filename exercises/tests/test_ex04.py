"""Grades ex04_lora_ga.py (for the lab, not for marks: lora.py has the idea)."""
import pytest
import torch

from exercises.tests.checks import same, several, tensor

ALPHA, GAMMA = 3.0, 5.0
SHAPES = ((9, 6, 2), (6, 9, 2), (7, 8, 3), (8, 7, 1))  # d_in, d_out, r


@pytest.fixture
def problems(draw):
    """W, r, and U, S and V, of which a gradient is made: its directions are certain."""
    found = []
    for d_in, d_out, r in SHAPES:
        k = min(d_in, d_out)
        U, V = (torch.linalg.qr(draw(side, k))[0] for side in (d_in, d_out))
        found.append((draw(d_in, d_out), r, U, torch.arange(k, 0, -1, dtype=U.dtype) + 0.3, V))
    return found


def factors(ex, G, r):
    found = several(ex.factors(G, r, GAMMA), 2, "factors")
    return tensor(found[0], (len(G), r), "A"), tensor(found[1], (r, G.shape[1]), "B")


def start_from(ex, W, G, r):
    found = several(ex.start_from(W, G, r, ALPHA, GAMMA), 3, "start_from")
    shapes = {"W": W.shape, "A": (len(G), r), "B": (r, G.shape[1])}
    return [tensor(each, shape, name) for each, (name, shape) in zip(found, shapes.items())]


def test_the_model_starts_as_it_was(ex, problems):
    for W, r, U, S, V in problems:
        frozen, A, B = start_from(ex, W, U * S @ V.T, r)
        same(frozen + ALPHA / r ** 0.5 * A @ B, W,
             "the new W and s AB, with s = alpha / √r, must add up to the old W")


def test_the_factors_are_orthogonal_and_as_long_as_stated(ex, problems):
    for _, r, U, S, V in problems:
        A, B = factors(ex, U * S @ V.T, r)
        square = torch.eye(r, dtype=A.dtype) * len(V) ** 0.5 / GAMMA
        same(A.T @ A, square, "A's columns must be orthogonal, with the length c")
        same(B @ B.T, square, "B's rows must be orthogonal, with the length c")


def test_the_factors_take_different_directions_of_the_gradient(ex, problems):
    for _, r, U, S, V in problems:
        G = U * S @ V.T
        A, B = factors(ex, G, r)
        same(A.T @ G @ B.T, torch.zeros(r, r, dtype=G.dtype),
             "A and B must take directions of different singular values, so that AᵀG Bᵀ = 0")


@pytest.mark.points(3)
def test_the_first_step_is_the_best_approximation_of_the_gradient(ex, problems):
    for W, r, U, S, V in problems:
        G = U * S @ V.T
        frozen, A, B = start_from(ex, W, G, r)
        A, B = A.clone().requires_grad_(), B.clone().requires_grad_()
        s = ALPHA / r ** 0.5
        (G * (frozen + s * A @ B)).sum().backward()  # a loss whose gradient by the weight is G
        move = s * (A.grad @ B + A @ B.grad).detach()
        best = U[:, :2 * r] * S[:2 * r] @ V[:, :2 * r].T
        cosine = ((move * best).sum() / (move.norm() * best.norm())).item()
        same(move / move.norm(), best / best.norm(),
             f"the first step must go along G's best approximation of rank {2 * r}; the cosine "
             f"with it is {cosine:.4f}")
        same(move, ALPHA ** 2 * len(V) ** 0.5 / (r * GAMMA) * best,
             "the first step has the right direction, but must also have the length s² c² times "
             "the best approximation's")


def test_the_gradients_size_and_sign_do_not_matter(ex, problems):
    for _, r, U, S, V in problems:
        G = U * S @ V.T
        A, B = factors(ex, G, r)
        for size in (-1.0, 1e-9, 1e9):
            other_A, other_B = factors(ex, size * G, r)
            same(other_A @ other_A.T, A @ A.T, f"with {size:g} · G in place of G, A Aᵀ must stay")
            same(other_B.T @ other_B, B.T @ B, f"with {size:g} · G in place of G, BᵀB must stay")
