"""Grades ex16_lora_rite.py."""
import pytest
import torch

from exercises.checks import different, holds, same, tensor, untouched

M, N, R = 9, 8, 3
LR, BETAS, EPS = 0.02, (0.8, 0.9), 1e-30
STEPS = 6


@pytest.fixture
def problem(draw):
    """A regression: the loss is ½ tr (W − W*) C (W − W*)ᵀ, for W = BA -> B, A, its gradient."""
    target, inputs = draw(M, N), draw(N, 3 * N)
    C = inputs @ inputs.T / (3 * N)
    return draw(M, R), draw(R, N), lambda W: (W - target) @ C


def gradients(G, B, A):
    return G @ A.T, B.T @ G


def trajectory(ex, B, A, gradient):
    """W after each of the answer's steps."""
    state, Ws = {}, []
    for _ in range(STEPS):
        grad_B, grad_A = gradients(gradient(B @ A), B, A)
        B, A, state = ex.step(B, A, grad_B, grad_A, state, LR, BETAS, EPS)
        tensor(B, (M, R), "the new B"), tensor(A, (R, N), "the new A")
        Ws.append(B @ A)
    return Ws


def root(V, rank):
    """The inverse root of a V (d, d) of this rank, on its range."""
    values, vectors = torch.linalg.eigh(V)
    values, vectors = values[-rank:], vectors[:, -rank:]
    return vectors @ torch.diag(values ** -0.5) @ vectors.T


class Dense:
    """One factor's moments as matrices of W's size: there no basis has to be chosen."""

    def __init__(self):
        self.V, self.M = 0.0, 0.0

    def move(self, G, Y):
        """The gradient of W, or of Wᵀ, and the partner -> what the factor moves W by, over −η."""
        onto = Y @ torch.linalg.pinv(Y)
        seen = G @ onto
        decayed = 0.0 if isinstance(self.V, float) else BETAS[1] * onto @ self.V @ onto
        self.V = decayed + (1 - BETAS[1]) * seen.T @ seen / len(seen)
        carried = 0.0 if isinstance(self.M, float) else BETAS[0] * self.M @ onto
        self.M = carried + (1 - BETAS[0]) * seen @ root(self.V, R)
        return self.M


def adam(B, A, gradient):
    """W after as many of Adam's steps."""
    B, A = B.clone().requires_grad_(), A.clone().requires_grad_()
    optimizer = torch.optim.Adam([B, A], lr=LR, betas=BETAS)
    for _ in range(STEPS):
        with torch.no_grad():
            B.grad, A.grad = gradients(gradient(B @ A), B, A)
        optimizer.step()
    return (B @ A).detach()


def test_unmagnified_takes_the_partners_size_out(ex, draw):
    grad_X, Y = draw(M, R), draw(N, R)
    g_bar, Q, R_Y = untouched((grad_X, Y), lambda: ex.unmagnified(grad_X, Y))
    tensor(g_bar, (M, R), "ḡ"), tensor(Q, (N, R), "Q"), tensor(R_Y, (R, R), "R")
    same(Q @ R_Y, Y, "Q R must be Y")
    same(Q.T @ Q, torch.eye(R, dtype=Q.dtype), "Q must have orthonormal columns")
    same(g_bar @ R_Y, grad_X, "ḡ R must be ∇X", tolerance=1e-9)


@pytest.mark.points(2)
def test_moments_are_carried_to_the_new_basis(ex, draw):
    V, M_old, g_bar = draw(R, 2 * R), draw(M, R), draw(M, R)
    V = V @ V.T
    Q, Q_old = torch.linalg.qr(draw(N, R))[0], torch.linalg.qr(draw(N, R))[0]
    inputs = V, M_old, g_bar, Q, Q_old
    new_V, new_M = untouched(inputs, lambda: ex.moments(*inputs, 0.7, 0.6, 0.1))
    tensor(new_V, (R, R), "V"), tensor(new_M, (M, R), "M")
    dense_V, dense_M = Q_old @ V @ Q_old.T, M_old @ Q_old.T
    expected_V = 0.6 * Q.T @ dense_V @ Q + 0.4 * torch.einsum("di,dj->ij", g_bar, g_bar) / M
    same(new_V, expected_V, "V, with the old V seen in the new basis")
    S = g_bar @ root(expected_V + 0.1 * torch.eye(R, dtype=V.dtype), R)
    same(new_M, 0.7 * dense_M @ Q + 0.3 * S, "M, with the old M seen in the new basis")


@pytest.mark.points(2)
def test_the_first_step_starts_from_no_moments(ex, problem):
    """What each factor moves W by is then a multiple of a polar factor."""
    B, A, gradient = problem
    G = gradient(B @ A)
    grad_B, grad_A = gradients(G, B, A)
    inputs = B, A, grad_B, grad_A
    new_B, new_A, _ = untouched(inputs, lambda: ex.step(*inputs, {}, LR, BETAS, EPS))
    tensor(new_B, (M, R), "the new B"), tensor(new_A, (R, N), "the new A")
    size = LR * (1 - BETAS[0]) / (1 - BETAS[1]) ** 0.5
    for name, moved, seen, d in (
            ("B", (new_B - B) @ A, G @ torch.linalg.pinv(A) @ A, M),
            ("A", B @ (new_A - A), B @ torch.linalg.pinv(B) @ G, N)):
        U, _, Vh = torch.linalg.svd(seen)
        expected = -size * d ** 0.5 * U[:, :R] @ Vh[:R]
        same(moved, expected, f"what {name}'s first step moves W by, with the other factor as "
                              "before the step", tolerance=1e-8)


@pytest.mark.points(3)
def test_several_steps_follow_the_moments_of_w(ex, problem):
    B, A, gradient = problem
    Ws = trajectory(ex, B, A, gradient)
    of_B, of_A = Dense(), Dense()
    for number, W in enumerate(Ws, start=1):
        G = gradient(B @ A)
        move_B = -LR * of_B.move(G, A.T)
        move_A = -LR * of_A.move(G.T, B).T
        B, A = B + move_B @ torch.linalg.pinv(A), A + torch.linalg.pinv(B) @ move_A
        same(W, B @ A, f"W after step {number}, against moments kept at W's size", tolerance=1e-7)


@pytest.mark.points(3)
def test_other_factors_of_the_same_w_take_the_same_path(ex, problem, draw):
    B, A, gradient = problem
    turn, back = torch.linalg.qr(draw(R, R))[0], torch.linalg.qr(draw(R, R))[0]
    T = turn @ torch.diag(torch.tensor([0.3, 1.0, 4.0], dtype=B.dtype)) @ back
    other_B, other_A = B @ T, torch.linalg.inv(T) @ A
    different(adam(other_B, other_A, gradient), adam(B, A, gradient),
              "this problem must tell an Adam apart", least=1e-3)
    paths = trajectory(ex, B, A, gradient), trajectory(ex, other_B, other_A, gradient)
    different(paths[0][-1], B @ A, "the steps must move W", least=1e-3)
    for number, (W, other_W) in enumerate(zip(*paths), start=1):
        same(other_W, W, f"W after step {number} must be the same from BT and T⁻¹A as from B and A",
             tolerance=1e-7)


def test_a_step_leaves_the_state_that_it_was_given(ex, problem):
    B, A, gradient = problem
    grads = gradients(gradient(B @ A), B, A)
    _, _, state = ex.step(B, A, *grads, {}, LR, BETAS, EPS)
    holds(isinstance(state, dict) and len(state) > 0, "the new state is to be a dict that holds "
                                                      "what the next step needs")
    names = set(state)
    values = list(state.values())
    holds(all(isinstance(value, torch.Tensor) for value in values),
          "the state must hold tensors and nothing else")
    again = untouched(values, lambda: ex.step(B, A, *grads, state, LR, BETAS, EPS),
                      "the state given must stay as it is")
    holds(set(state) == names, "the state given must keep its entries")
    once_more = ex.step(B, A, *grads, state, LR, BETAS, EPS)
    same(again[0] @ again[1], once_more[0] @ once_more[1], "the same step twice must be the same")
