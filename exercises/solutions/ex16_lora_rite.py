"""16. LoRA-RITE (Yen et al., arXiv 2410.20625, Algorithm 1), simplified.

BT and T⁻¹A make the same W for every invertible T (r, r), yet from there Adam moves W elsewhere.
LoRA-RITE is an Adam whose steps of W do not depend on T. For one factor X with its partner Y, where
XYᵀ is BA or its transpose, it takes Y's size out of the gradient, works in an orthonormal basis Q
of Y's columns, and carries the moments from the last step's basis, Q_old, to this one:

    Y = QR    ḡ = ∇X R⁻¹    P = QᵀQ_old
    V ← β₂ P V Pᵀ + (1 − β₂) ḡᵀḡ / d      S = ḡ (V + εI)^(−½)
    M ← β₁ M Pᵀ + (1 − β₁) S              X ← X − η M R⁻ᵀ

It does this for X = B with Y = Aᵀ, and for X = Aᵀ with Y = B, where ∇X is (∇A)ᵀ. The power −½ is
the symmetric one.

B (m, r), A (r, n); X (d, r), where d is m or n; Q like Y; R, P, V (r, r); ḡ, S, M (d, r).

This is a simplification: the paper adds to V a bound on the mass that escapes from it, where P
loses part of the old basis. Here that is left out, and so is Adam's bias correction. (β₂ in V and
the division by d are those of the authors' code, which also clips ḡ.)

To think about: at the first step M is a multiple of the matrix nearest to ḡ among those with
orthonormal columns. Why? Which other optimizer steps like that?
"""
import torch

import lora

TO_WRITE = ("unmagnified", "moments", "step")


def unmagnified(grad_X, Y):
    """∇X (d, r), and Y with r independent columns -> ḡ (d, r), Q, R.

    Hint: R is small and triangular: solve with it.
    """
    Q, R = torch.linalg.qr(Y)
    g_bar = torch.linalg.solve_triangular(R, grad_X, upper=True, left=False)
    return g_bar, Q, R


def moments(V, M, g_bar, Q, Q_old, beta1, beta2, eps):
    """The moments V (r, r), M (d, r) of the last step, in the basis Q_old -> V, M in the basis Q.

    Hint: V is symmetric: its eigenvectors make a matrix function one of the eigenvalues.
    """
    P = Q.T @ Q_old
    V = beta2 * P @ V @ P.T + (1 - beta2) * g_bar.T @ g_bar / len(g_bar)
    values, vectors = torch.linalg.eigh(V)
    S = g_bar @ (vectors / (values + eps).sqrt()) @ vectors.T
    M = beta1 * M @ P.T + (1 - beta1) * S
    return V, M


def step(B, A, grad_B, grad_A, state, lr, betas, eps):
    """One step of both factors, both from the values before it -> new B, new A, new state.

    state  a dict of tensors, yours to fill; {} before the first step, when the moments are zero
    betas  β₁, β₂
    For (X, ∇X, Y) = (B, ∇B, Aᵀ), and again for (Aᵀ, (∇A)ᵀ, B): `unmagnified`, then `moments`, then
    X − η M R⁻ᵀ. Keep V, M and Q of each.
    Hint: Z = M R⁻ᵀ solves Z Rᵀ = M, and Rᵀ is lower triangular. At the first step any Q_old will
    do. Why?
    """
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


# How it trains: an optimizer that takes `step` for each layer. B = 0 has no inverse R, so it starts
# small and random, taken out of W0. Give --lr 4e-3. The moments' memory is short: with a longer
# one, --set "BETAS=(0.9, 0.95)", it learned a sixth of the sums. A likely reason, not tried: P
# forgets part of V whenever the basis turns, and too small a V makes S too large. The paper's bound
# is there for that.

BETAS = (0.7, 0.8)


def adapt(model, rank):
    lora.apply_lora(model, rank)
    for layer in lora.lora_layers(model).values():
        with torch.no_grad():
            B = torch.randn_like(layer.lora_B) * 0.02
            layer.start_from(layer.lora_A.detach().clone(), B)


class LoRARITE(torch.optim.Optimizer):
    """In float64 on the CPU: V's small eigenvalues need the digits, and some devices lack eigh."""

    def __init__(self, model, lr, betas, eps=1e-16):
        self.layers = list(lora.lora_layers(model).values())
        factors = [factor for layer in self.layers for factor in (layer.lora_A, layer.lora_B)]
        super().__init__(factors, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure=None):
        def precise(tensor):
            return tensor.to("cpu", torch.float64)

        [group] = self.param_groups
        for layer in self.layers:
            A, B = layer.lora_A, layer.lora_B
            state = {name: precise(tensor) for name, tensor in self.state[B].items()}
            new_B, new_A, self.state[B] = step(
                precise(B), precise(A), precise(B.grad), precise(A.grad), state, group["lr"],
                group["betas"], group["eps"])
            B.copy_(new_B)
            A.copy_(new_A)


def optimizer(model, lr):
    return LoRARITE(model, lr, BETAS)
