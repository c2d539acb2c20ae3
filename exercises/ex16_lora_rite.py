"""16. LoRA-RITE (Yen et al., arXiv 2410.20625, Algorithm 1), simplified.

BT and T⁻¹A make the same W for every invertible T (r, r), yet from there Adam moves W elsewhere.
LoRA-RITE is an Adam whose steps of W do not depend on T. For one factor X with its partner Y, where
XYᵀ is BA or its transpose, it takes Y's size out of the gradient, works in an orthonormal basis Q
of Y's columns, and carries the moments from the last step's basis, Q_old, to this one by the matrix
C (the paper's P):

    Y = QR    ḡ = ∇X R⁻¹    C = QᵀQ_old
    V ← β₂ C V Cᵀ + (1 − β₂) ḡᵀḡ / d      S = ḡ (V + εI)^(−½)
    M ← β₁ M Cᵀ + (1 − β₁) S              X ← X − η M R⁻ᵀ

It does this for X = B with Y = Aᵀ, and for X = Aᵀ with Y = B, where ∇X is (∇A)ᵀ. The power −½ is
the symmetric one.

B (m, r), A (r, n); X (d, r), where d is m or n; Q like Y; R, C, V (r, r); ḡ, S, M (d, r). V and M
are Adam's moments, as in the paper: V has nothing to do with an SVD.

This is a simplification: the paper adds to V a bound on the mass that escapes from it, where C
loses part of the old basis. Here that is left out, and so is Adam's bias correction. (β₂ in V and
the division by d are those of the authors' code, which also clips ḡ.)

To think about: at the first step M is a multiple of the matrix nearest to ḡ among those with
orthonormal columns. Why? Which other optimizer steps like that?
"""
import torch

import lora


def unmagnified(grad_X, Y):
    """∇X (d, r), and Y with r independent columns -> ḡ (d, r), Q, R.

    Hint: R is small and triangular: solve with it.
    """
    raise NotImplementedError


def moments(V, M, g_bar, Q, Q_old, beta1, beta2, eps):
    """The moments V (r, r), M (d, r) of the last step, in the basis Q_old -> V, M in the basis Q.

    Hint: V is symmetric: its eigenvectors make a matrix function one of the eigenvalues.
    """
    raise NotImplementedError


def step(B, A, grad_B, grad_A, state, lr, betas, eps):
    """One step of both factors, both from the values before it -> new B, new A, new state.

    state  the dict of tensors that the step before returned; {} before the first step, when the
           moments are zero. Return a new dict; leave `state` as it is. What a step needs of the
           steps before is in `state` and nowhere else.
    betas  β₁, β₂
    For (X, ∇X, Y) = (B, ∇B, Aᵀ), and again for (Aᵀ, (∇A)ᵀ, B): `unmagnified`, then `moments`, then
    X − η M R⁻ᵀ. Keep V, M and Q of each.
    Hint: Z = M R⁻ᵀ solves Z Rᵀ = M, and Rᵀ is lower triangular. At the first step any Q_old is
    right. Why?
    """
    raise NotImplementedError


# How it trains: an optimizer that takes `step` for each layer. B = 0 has no inverse R, so it starts
# small and random, taken out of W0. Give --lr 4e-3. What matters is a short memory of M, β₁: with
# (0.9, 0.95) it learned 19 % of the sums (15 to 73 in three seeds), with (0.7, 0.95), a long memory
# of V alone, 99 % (98 to 100).

BETAS = (0.7, 0.8)


def adapt(model, rank):
    lora.apply_lora(model, rank)
    for layer in lora.lora_layers(model).values():
        A, B = layer.lora_A.detach().clone(), 0.02 * torch.randn_like(layer.lora_B)
        lora.start_from(layer, A, B)


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
