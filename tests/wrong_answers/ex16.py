"""Wrong answers to exercise 16, and right ones in another style, laid over the solution."""

# wrong: C is the wrong way round
def moments(V, M, g_bar, Q, Q_old, beta1, beta2, eps):
    C = Q_old.T @ Q
    V = beta2 * C @ V @ C.T + (1 - beta2) * g_bar.T @ g_bar / len(g_bar)
    values, vectors = torch.linalg.eigh(V)
    S = g_bar @ (vectors / (values + eps).sqrt()) @ vectors.T
    M = beta1 * M @ C.T + (1 - beta1) * S
    return V, M

# wrong: the moments stay in the old basis
def moments(V, M, g_bar, Q, Q_old, beta1, beta2, eps):
    C = torch.eye(len(V)).to(V)
    V = beta2 * C @ V @ C.T + (1 - beta2) * g_bar.T @ g_bar / len(g_bar)
    values, vectors = torch.linalg.eigh(V)
    S = g_bar @ (vectors / (values + eps).sqrt()) @ vectors.T
    M = beta1 * M @ C.T + (1 - beta1) * S
    return V, M

# wrong: V is not divided by d
def moments(V, M, g_bar, Q, Q_old, beta1, beta2, eps):
    C = Q.T @ Q_old
    V = beta2 * C @ V @ C.T + (1 - beta2) * g_bar.T @ g_bar
    values, vectors = torch.linalg.eigh(V)
    S = g_bar @ (vectors / (values + eps).sqrt()) @ vectors.T
    M = beta1 * M @ C.T + (1 - beta1) * S
    return V, M

# wrong: V counts entry by entry, as Adam's does
def moments(V, M, g_bar, Q, Q_old, beta1, beta2, eps):
    C = Q.T @ Q_old
    V = beta2 * C @ V @ C.T + (1 - beta2) * torch.diag(g_bar.square().mean(dim=0))
    values, vectors = torch.linalg.eigh(V)
    S = g_bar @ (vectors / (values + eps).sqrt()) @ vectors.T
    M = beta1 * M @ C.T + (1 - beta1) * S
    return V, M

# wrong: S divides by V, not by its root
def moments(V, M, g_bar, Q, Q_old, beta1, beta2, eps):
    C = Q.T @ Q_old
    V = beta2 * C @ V @ C.T + (1 - beta2) * g_bar.T @ g_bar / len(g_bar)
    values, vectors = torch.linalg.eigh(V)
    S = g_bar @ (vectors / (values + eps)) @ vectors.T
    M = beta1 * M @ C.T + (1 - beta1) * S
    return V, M

# wrong: R is multiplied with
def unmagnified(grad_X, Y):
    Q, R = torch.linalg.qr(Y)
    g_bar = grad_X @ R
    return g_bar, Q, R

# wrong: the step lacks R
def step(B, A, grad_B, grad_A, state, lr, betas, eps):
    pairs = {"B": (B, grad_B, A.T), "A": (A.T, grad_A.T, B)}
    after, new_state = {}, {}
    for name, (X, grad_X, Y) in pairs.items():
        g_bar, Q, R = unmagnified(grad_X, Y)
        V = state.get(f"V_{name}", torch.zeros_like(R))
        M = state.get(f"M_{name}", torch.zeros_like(X))
        Q_old = state.get(f"Q_{name}", Q)
        V, M = moments(V, M, g_bar, Q, Q_old, *betas, eps)
        move = M
        after[name] = X - lr * move
        new_state |= {f"V_{name}": V, f"M_{name}": M, f"Q_{name}": Q}
    return after["B"], after["A"].T, new_state

# wrong: the step has R in place of its transpose
def step(B, A, grad_B, grad_A, state, lr, betas, eps):
    pairs = {"B": (B, grad_B, A.T), "A": (A.T, grad_A.T, B)}
    after, new_state = {}, {}
    for name, (X, grad_X, Y) in pairs.items():
        g_bar, Q, R = unmagnified(grad_X, Y)
        V = state.get(f"V_{name}", torch.zeros_like(R))
        M = state.get(f"M_{name}", torch.zeros_like(X))
        Q_old = state.get(f"Q_{name}", Q)
        V, M = moments(V, M, g_bar, Q, Q_old, *betas, eps)
        move = torch.linalg.solve_triangular(R, M, upper=True, left=False)
        after[name] = X - lr * move
        new_state |= {f"V_{name}": V, f"M_{name}": M, f"Q_{name}": Q}
    return after["B"], after["A"].T, new_state

# wrong: A steps with the new B
def step(B, A, grad_B, grad_A, state, lr, betas, eps):
    pairs = {"B": (B, grad_B, A.T), "A": (A.T, grad_A.T, B)}
    after, new_state = {}, {}
    for name, (X, grad_X, Y) in pairs.items():
        g_bar, Q, R = unmagnified(grad_X, after.get('B', Y))
        V = state.get(f"V_{name}", torch.zeros_like(R))
        M = state.get(f"M_{name}", torch.zeros_like(X))
        Q_old = state.get(f"Q_{name}", Q)
        V, M = moments(V, M, g_bar, Q, Q_old, *betas, eps)
        move = torch.linalg.solve_triangular(R.T, M, upper=False, left=False)
        after[name] = X - lr * move
        new_state |= {f"V_{name}": V, f"M_{name}": M, f"Q_{name}": Q}
    return after["B"], after["A"].T, new_state

# wrong: the state is empty each time
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
        new_state |= {'V': V}
    return after["B"], after["A"].T, new_state

# wrong: the state holds a number
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
        new_state |= {f"V_{name}": V, f"M_{name}": M, f"Q_{name}": Q, 'steps': 1}
    return after["B"], after["A"].T, new_state

# wrong: the old basis is never renewed
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
        new_state |= {f"V_{name}": V, f"M_{name}": M, f"Q_{name}": Q_old}
    return after["B"], after["A"].T, new_state

# wrong: step has its own eps
original_step = step

def step(B, A, grad_B, grad_A, state, lr, betas, eps):
    return original_step(B, A, grad_B, grad_A, state, lr, betas, 1e-12)

# wrong: the state is filled in place
original_step = step

def step(B, A, grad_B, grad_A, state, lr, betas, eps):
    B, A, new_state = original_step(B, A, grad_B, grad_A, state, lr, betas, eps)
    state.update(new_state)
    return B, A, state

# wrong: the state is kept in a variable of the module
original_step, kept = step, {}

def step(B, A, grad_B, grad_A, state, lr, betas, eps):
    B, A, new_state = original_step(B, A, grad_B, grad_A, kept if state else {}, lr, betas, eps)
    kept.update(new_state)
    return B, A, {"last": B}

# right: another style
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
