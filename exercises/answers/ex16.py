"""Answers to exercise 16 that the grader must tell from right ones, and one more right one."""
WRONG = {
    "P is the wrong way round": ("P = Q.T @ Q_old", "P = Q_old.T @ Q"),
    "the moments stay in the old basis": ("P = Q.T @ Q_old", "P = torch.eye(len(V)).to(V)"),
    "V is not divided by d": (" / len(g_bar)", ""),
    "V counts entry by entry, as Adam's does": (
        "g_bar.T @ g_bar / len(g_bar)", "torch.diag(g_bar.square().mean(dim=0))"),
    "S divides by V, not by its root": ("(values + eps).sqrt()", "(values + eps)"),
    "R is multiplied with": (
        "torch.linalg.solve_triangular(R, grad_X, upper=True, left=False)", "grad_X @ R"),
    "the step lacks R": (
        "torch.linalg.solve_triangular(R.T, M, upper=False, left=False)", "M"),
    "the step has R in place of its transpose": (
        "torch.linalg.solve_triangular(R.T, M, upper=False, left=False)",
        "torch.linalg.solve_triangular(R, M, upper=True, left=False)"),
    "A steps with the new B": (
        "g_bar, Q, R = unmagnified(grad_X, Y)",
        "g_bar, Q, R = unmagnified(grad_X, after.get('B', Y))"),
    "the state is empty each time": (
        "f\"V_{name}\": V, f\"M_{name}\": M, f\"Q_{name}\": Q", "'V': V"),
    "the state holds a number": ("f\"Q_{name}\": Q}", "f\"Q_{name}\": Q, 'steps': 1}"),
    "the old basis is never renewed": ("f\"Q_{name}\": Q}", "f\"Q_{name}\": Q_old}"),
}

RIGHT = '''
import torch


def unmagnified(grad_X, Y):
    U, sizes, Vh = torch.linalg.svd(Y, full_matrices=False)
    R = Vh.T @ torch.diag(sizes) @ Vh  # the polar decomposition does as well
    return grad_X @ torch.linalg.inv(R), U @ Vh, R


def moments(V, M, g_bar, Q, Q_old, beta1, beta2, eps):
    turned_V = Q.T @ (Q_old @ V @ Q_old.T) @ Q
    new_V = beta2 * turned_V + (1 - beta2) / g_bar.shape[0] * (g_bar.T @ g_bar)
    U, sizes, _ = torch.linalg.svd(new_V)
    S = g_bar @ U @ torch.diag(1 / torch.sqrt(sizes + eps)) @ U.T
    return new_V, beta1 * (M @ Q_old.T) @ Q + (1 - beta1) * S


def step(B, A, grad_B, grad_A, state, lr, betas, eps):
    def one(X, grad_X, Y, V, M, Q_old):
        g_bar, Q, R = unmagnified(grad_X, Y)
        V, M = moments(V, M, g_bar, Q, Q_old, betas[0], betas[1], eps)
        return X - lr * M @ torch.linalg.inv(R).T, {"V": V, "M": M, "Q": Q}

    r = len(A)
    if not state:
        zero = torch.zeros(r, r, dtype=B.dtype)
        state = {"BV": zero, "BM": 0 * B, "BQ": 0 * A.T, "AV": zero, "AM": 0 * A.T, "AQ": 0 * B}
    new_B, of_B = one(B, grad_B, A.T, state["BV"], state["BM"], state["BQ"])
    new_A, of_A = one(A.T, grad_A.T, B, state["AV"], state["AM"], state["AQ"])
    new_state = {"B" + name: value for name, value in of_B.items()}
    new_state.update({"A" + name: value for name, value in of_A.items()})
    return new_B, new_A.T, new_state
'''
