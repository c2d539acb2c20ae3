"""Grades ex16_lora_rite.py."""
import pytest
import torch

from exercises.tests.checks import different, holds, same, several, tensor

M, N, R = 9, 8, 3
LR, BETAS, EPS = 0.02, (0.8, 0.9), 1e-30
STEPS = 6


@pytest.fixture
def problem(draw):
    return regression(draw)


def regression(draw):
    """The loss ½ tr (W − W*) C (W − W*)ᵀ for W = BA -> B, A and the function of W's gradient."""
    target, inputs = draw(M, N), draw(N, 3 * N)
    C = inputs @ inputs.T / (3 * N)
    return draw(M, R), draw(R, N), lambda W: (W - target) @ C


def gradients(G, B, A):
    return G @ A.T, B.T @ G


def step(ex, B, A, gradient, state, eps=EPS):
    """One of the answer's steps -> B, A, state."""
    found = ex.step(B, A, *gradients(gradient(B @ A), B, A), state, LR, BETAS, eps)
    B, A, state = several(found, 3, "step")
    holds(isinstance(state, dict) and len(state) > 0,
          "the new state must be a dict of what the next step needs")
    holds(all(isinstance(value, torch.Tensor) for value in state.values()),
          "the state must hold tensors and nothing else")
    return tensor(B, (M, R), "the new B"), tensor(A, (R, N), "the new A"), state


def trajectory(ex, B, A, gradient):
    """W after each of the answer's steps."""
    state, Ws = {}, []
    for _ in range(STEPS):
        B, A, state = step(ex, B, A, gradient, state)
        Ws.append(B @ A)
    return Ws


def root(V, rank, eps=0.0):
    """(V + eps I)^(−½) of a V (d, d) of this rank, on V's range."""
    values, vectors = torch.linalg.eigh(V)
    values, vectors = values[-rank:], vectors[:, -rank:]
    return vectors @ torch.diag((values + eps) ** -0.5) @ vectors.T


class Dense:
    """One factor's moments as matrices of W's size: there no basis has to be chosen."""

    def __init__(self):
        self.V, self.M = None, None

    def move(self, G, Y, eps):
        """The gradient of W, or of Wᵀ, and the partner -> what the factor moves W by, over −η."""
        onto = Y @ torch.linalg.pinv(Y)
        seen = G @ onto
        new_V = (1 - BETAS[1]) * seen.T @ seen / len(seen)
        self.V = new_V if self.V is None else BETAS[1] * onto @ self.V @ onto + new_V
        new_M = (1 - BETAS[0]) * seen @ root(self.V, R, eps)
        self.M = new_M if self.M is None else BETAS[0] * self.M @ onto + new_M
        return self.M


def adam(B, A, gradient):
    """W after as many of Adam's steps, without bias correction."""
    moments = [[torch.zeros_like(X), torch.zeros_like(X)] for X in (B, A)]
    for _ in range(STEPS):
        steps = []
        for grad, (mean, square) in zip(gradients(gradient(B @ A), B, A), moments):
            mean.lerp_(grad, 1 - BETAS[0])
            square.lerp_(grad.square(), 1 - BETAS[1])
            steps.append(LR * mean / square.sqrt())
        B, A = B - steps[0], A - steps[1]
    return B @ A


def test_unmagnified_takes_the_partners_size_out(ex, draw):
    grad_X, Y = draw(M, R), draw(N, R)
    g_bar, Q, R_Y = several(ex.unmagnified(grad_X, Y), 3, "unmagnified")
    tensor(g_bar, (M, R), "ḡ"), tensor(Q, (N, R), "Q"), tensor(R_Y, (R, R), "R")
    same(Q @ R_Y, Y, "Q R must be Y")
    same(Q.T @ Q, torch.eye(R, dtype=Q.dtype), "Q must have orthonormal columns")
    same(g_bar @ R_Y, grad_X, "ḡ R must be ∇X", tolerance=1e-9)


@pytest.mark.points(2)
def test_moments_are_carried_to_the_new_basis(ex, draw):
    V, M_old, g_bar = draw(R, 2 * R), draw(M, R), draw(M, R)
    V = V @ V.T
    Q, Q_old = torch.linalg.qr(draw(N, R))[0], torch.linalg.qr(draw(N, R))[0]
    new_V, new_M = several(ex.moments(V, M_old, g_bar, Q, Q_old, 0.7, 0.6, 0.1), 2, "moments")
    tensor(new_V, (R, R), "V"), tensor(new_M, (M, R), "M")
    dense_V, dense_M = Q_old @ V @ Q_old.T, M_old @ Q_old.T
    expected_V = 0.6 * Q.T @ dense_V @ Q + 0.4 * torch.einsum("di,dj->ij", g_bar, g_bar) / M
    same(new_V, expected_V, "V, with the old V seen in the new basis")
    S = g_bar @ root(expected_V, R, 0.1)
    same(new_M, 0.7 * dense_M @ Q + 0.3 * S, "M, with the old M seen in the new basis")


@pytest.mark.points(2)
def test_the_first_step_starts_from_no_moments(ex, problem):
    """With a tiny ε, what each factor moves W by is a multiple of a polar factor."""
    B, A, gradient = problem
    G = gradient(B @ A)
    new_B, new_A, _ = step(ex, B, A, gradient, {})
    size = LR * (1 - BETAS[0]) / (1 - BETAS[1]) ** 0.5
    for name, moved, seen, d in (
            ("B", (new_B - B) @ A, G @ torch.linalg.pinv(A) @ A, M),
            ("A", B @ (new_A - A), B @ torch.linalg.pinv(B) @ G, N)):
        U, _, Vh = torch.linalg.svd(seen)
        expected = -size * d ** 0.5 * U[:, :R] @ Vh[:R]
        same(moved, expected, f"what {name}'s first step moves W by, with the other factor as "
                              "before the step", tolerance=1e-8)


@pytest.mark.points(3)
def test_several_steps_follow_the_moments_of_w(ex, draw):
    """Two problems in turn, each with its state, and with an ε that counts."""
    runs = []
    for eps in (EPS, 0.05):
        B, A, gradient = regression(draw)
        runs.append({"mine": (B, A, {}), "B": B, "A": A, "gradient": gradient, "eps": eps,
                     "of_B": Dense(), "of_A": Dense()})
    for number in range(1, STEPS + 1):
        for run in runs:
            B, A, eps = run["B"], run["A"], run["eps"]
            mine_B, mine_A, state = run["mine"]
            run["mine"] = step(ex, mine_B, mine_A, run["gradient"], state, eps)
            G = run["gradient"](B @ A)
            move_B = -LR * run["of_B"].move(G, A.T, eps)
            move_A = -LR * run["of_A"].move(G.T, B, eps).T
            run["B"], run["A"] = (B + move_B @ torch.linalg.pinv(A),
                                  A + torch.linalg.pinv(B) @ move_A)
            same(run["mine"][0] @ run["mine"][1], run["B"] @ run["A"],
                 f"with ε = {eps:g}, W after step {number} must be that of moments of W's size",
                 tolerance=1e-7)


@pytest.mark.points(3)
def test_other_factors_of_the_same_w_take_the_same_path(ex, problem, draw):
    B, A, gradient = problem
    turn, back = torch.linalg.qr(draw(R, R))[0], torch.linalg.qr(draw(R, R))[0]
    T = turn @ torch.diag(torch.tensor([0.3, 1.0, 4.0], dtype=B.dtype)) @ back
    other_B, other_A = B @ T, torch.linalg.inv(T) @ A
    different(adam(other_B, other_A, gradient), adam(B, A, gradient),
              "this problem must be one in which Adam's paths differ", least=1e-3)
    paths = trajectory(ex, B, A, gradient), trajectory(ex, other_B, other_A, gradient)
    different(paths[0][-1], B @ A, "the steps must move W", least=1e-3)
    for number, (W, other_W) in enumerate(zip(*paths), start=1):
        same(other_W, W, f"W after step {number} must be the same from BT and T⁻¹A as from B and A",
             tolerance=1e-7)
