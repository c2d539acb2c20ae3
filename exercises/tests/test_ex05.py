"""Grades ex05_preconditioner.py (for the lab, not for marks: lora.py has the idea)."""
import pytest
import torch

from exercises.tests.checks import same, several, tensor


@pytest.fixture
def problem(draw):
    G, A, B, s = draw(8, 9), draw(8, 3), draw(3, 9), 1.7
    return G, A, B, s, s * G @ B.T, s * A.T @ G  # ..., ∇A, ∇B


def pair(found, A, B, function):
    several(found, 2, function)
    return tensor(found[0], A.shape, "A's"), tensor(found[1], B.shape, "B's")


def by_inverse(grad_A, grad_B, A, B, delta):
    I = torch.eye(A.shape[1], dtype=A.dtype)
    return (grad_A @ torch.linalg.inv(B @ B.T + delta * I),
            torch.linalg.inv(A.T @ A + delta * I) @ grad_B)


@pytest.mark.points(2)
def test_the_gradients_are_multiplied_by_the_inverses(ex, problem, draw):
    _, A, B, _, _, _ = problem
    grad_A, grad_B = draw(8, 3), draw(3, 9)  # any numbers: the formula asks nothing of them
    for delta in (0.4, 1e-6):
        found = pair(ex.precondition(grad_A, grad_B, A, B, delta), A, B, "precondition")
        for name, mine, wanted in zip("AB", found, by_inverse(grad_A, grad_B, A, B, delta)):
            same(mine, wanted, f"with δ = {delta:g}, ∇{name} must be what the inverse of the other "
                               "factor's damped Gram matrix makes of it")


def test_a_start_from_zero_is_finite(ex, problem):
    G, A, B, s, _, grad_B = problem
    B = torch.zeros_like(B)
    grad_A = s * G @ B.T
    new_A, new_B = pair(ex.precondition(grad_A, grad_B, A, B, 1e-6), A, B, "precondition")
    same(new_A, grad_A, "with B = 0, ∇A is 0 and stays so")
    same(A.T @ A @ new_B + 1e-6 * new_B, grad_B, "with B = 0, the new ∇B solves (A's damped Gram "
                                                      "matrix) · new = ∇B")


@pytest.mark.points(2)
def test_without_damping_the_weight_moves_by_the_gradients_projections(ex, problem):
    G, A, B, s, _, _ = problem
    onto_A, onto_B = (Q @ Q.T for Q in (torch.linalg.qr(A)[0], torch.linalg.qr(B.T)[0]))
    move = ex.weight_move(G, A, B, s, 1e-13)
    same(tensor(move, (8, 9), "the move"), -s ** 2 * (G @ onto_B + onto_A @ G),
         "as δ → 0, W must move by −s² (G projected onto B's rows + G projected onto A's columns)",
         tolerance=1e-9)


@pytest.mark.points(2)
def test_how_the_product_is_split_does_not_matter(ex, problem, draw):
    G, A, B, s, grad_A, grad_B = problem
    left, right = (torch.linalg.qr(draw(3, 3))[0] for _ in range(2))
    T = left * torch.tensor([0.2, 1.0, 4.0], dtype=A.dtype) @ right
    A2, B2 = A @ T, torch.linalg.solve(T, B)
    same(ex.weight_move(G, A2, B2, s, 0.0), ex.weight_move(G, A, B, s, 0.0),
         "from A T and T⁻¹ B, which make the same weight, W must move as from A and B",
         tolerance=1e-9)
    new_A, new_B = ex.step(grad_A, grad_B, A, B, 0.0, 0.1)
    new_A2, new_B2 = ex.step(s * G @ B2.T, s * A2.T @ G, A2, B2, 0.0, 0.1)
    same(new_A2 @ new_B2, new_A @ new_B,
         "after a step from A T and T⁻¹ B, the product must be that after a step from A and B",
         tolerance=1e-9)


@pytest.mark.points(2)
def test_a_step_takes_both_grams_from_before_it(ex, problem):
    _, A, B, _, grad_A, grad_B = problem
    delta, lr = 0.2, 0.3
    new_A, new_B = pair(ex.step(grad_A, grad_B, A, B, delta, lr), A, B, "step")
    for_A, for_B = by_inverse(grad_A, grad_B, A, B, delta)
    same(A - new_A, lr * for_A, "A must move by the learning rate times its new gradient")
    same(B - new_B, lr * for_B, "B must move by the learning rate times its new gradient, made of "
                                "the factors as they were before the step")


def test_the_move_is_that_of_a_small_step(ex, problem):
    G, A, B, s, grad_A, grad_B = problem
    delta, lr = 0.2, 1e-3
    forth, back = (ex.step(grad_A, grad_B, A, B, delta, rate) for rate in (lr, -lr))
    slope = s * (forth[0] @ forth[1] - back[0] @ back[1]) / (2 * lr)  # exact: s·AB is quadratic
    same(ex.weight_move(G, A, B, s, delta), slope,
         "weight_move must be how s AB changes with the learning rate", tolerance=1e-9)
