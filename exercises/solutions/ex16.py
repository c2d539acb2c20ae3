def unmagnified(grad_X, Y):
    Q, R = torch.linalg.qr(Y)
    g_bar = torch.linalg.solve_triangular(R, grad_X, upper=True, left=False)
    return g_bar, Q, R


def moments(V, M, g_bar, Q, Q_old, beta1, beta2, eps):
    C = Q.T @ Q_old
    V = beta2 * C @ V @ C.T + (1 - beta2) * g_bar.T @ g_bar / len(g_bar)
    values, vectors = torch.linalg.eigh(V)
    S = g_bar @ (vectors / (values + eps).sqrt()) @ vectors.T
    M = beta1 * M @ C.T + (1 - beta1) * S
    return V, M


def step(B, A, grad_B, grad_A, state, lr, betas, eps):
    pairs = {"B": (B, grad_B, A.T), "A": (A.T, grad_A.T, B)}
    after, new_state = {}, {}
    for name, (X, grad_X, Y) in pairs.items():
        g_bar, Q, R = unmagnified(grad_X, Y)
        V = state.get(f"V_{name}", torch.zeros_like(R))
        M = state.get(f"M_{name}", torch.zeros_like(X))
        Q_old = state.get(f"Q_{name}", Q)
        V, M = moments(V, M, g_bar, Q, Q_old, *betas, eps)
        move = torch.linalg.solve_triangular(R.T, M, upper=False, left=False)
        after[name] = X - lr * move
        new_state |= {f"V_{name}": V, f"M_{name}": M, f"Q_{name}": Q}
    return after["B"], after["A"].T, new_state
