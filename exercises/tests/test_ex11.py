"""Grades ex11_lora_pro.py."""
import pytest
import torch

from exercises.tests.checks import holds, same, several, tensor


@pytest.fixture
def problem(draw):
    G, A, B, s = draw(8, 7), draw(3, 7), draw(8, 3), 1.7
    return G, A, B, s, s * B.T @ G, s * G @ A.T  # ..., ∇A, ∇B


def projection(columns):
    U = torch.linalg.qr(columns)[0]
    return U @ U.T


def adjusted(ex, grad_A, grad_B, A, B, s):
    g_A, g_B = several(ex.adjusted(grad_A, grad_B, A, B, s), 2, "adjusted")
    return tensor(g_A, A.shape, "g_A"), tensor(g_B, B.shape, "g_B")


@pytest.mark.points(2)
def test_sylvester_solves_its_equation(ex, draw):
    K, L, C = draw(4, 9), draw(4, 9), draw(4, 4)
    K, L = K @ K.T, L @ L.T
    X = tensor(ex.sylvester(K, L, C), (4, 4), "X")
    same(K @ X + X @ L, C, "K X + X L must be C")


def test_sylvester_with_equal_multiples_of_the_identity(ex, draw):
    C, I = draw(3, 3), torch.eye(3, dtype=torch.float64)
    same(ex.sylvester(2 * I, 3 * I, C), C / 5, "with K = 2I and L = 3I, X is C / 5")


@pytest.mark.points(3)
def test_the_move_is_the_projection_of_the_gradient(ex, problem):
    G, A, B, s, grad_A, grad_B = problem
    g_A, g_B = adjusted(ex, grad_A, grad_B, A, B, s)
    move = s * (B @ g_A + g_B @ A)
    I_m, I_n = torch.eye(8, dtype=G.dtype), torch.eye(7, dtype=G.dtype)
    missed = (I_m - projection(B)) @ G @ (I_n - projection(A.T))
    same(move, G - missed, "s (B g_A + g_B A) must be G without what lies outside B's columns and "
                           "A's rows", tolerance=1e-9)


@pytest.mark.points(2)
def test_no_other_choice_of_x_is_nearer_to_loras_gradients(ex, problem, draw):
    _, A, B, s, grad_A, grad_B = problem
    g_A, g_B = adjusted(ex, grad_A, grad_B, A, B, s)

    def distance(X):
        apart_A, apart_B = g_A + X @ A - grad_A, g_B - B @ X - grad_B
        return (apart_A.square().sum() + apart_B.square().sum()).item()

    here = distance(torch.zeros(3, 3, dtype=A.dtype))
    for _ in range(20):
        other = distance(1e-3 * draw(3, 3))
        holds(other > here, f"another X (r, r) brings g_A, g_B nearer to ∇A, ∇B: the squared "
                            f"distance falls from {here:.10g} to {other:.10g}")


def test_a_gradient_within_reach_is_met_exactly(ex, problem, draw):
    _, A, B, s, _, _ = problem
    G = B @ draw(3, 7) + draw(8, 3) @ A
    g_A, g_B = adjusted(ex, s * B.T @ G, s * G @ A.T, A, B, s)
    same(s * (B @ g_A + g_B @ A), G, "a G that LoRA can make must be made", tolerance=1e-9)
