"""14. LoRA² (Zhang et al., arXiv 2408.06854), simplified.

Two low-rank updates learn side by side, in planes that have no direction in common. A penalty
keeps each plane's directions orthonormal, and the planes orthogonal to each other: then no
direction is learned twice, and each |λ| is a singular value of ΔW. Ranks that matter little are
pruned.

    ΔW = P₁ diag(λ₁) Q₁ + P₂ diag(λ₂) Q₂

    penalty = Σₖ (‖PₖᵀPₖ − I‖² + ‖QₖQₖᵀ − I‖²) + ‖P₁ᵀP₂‖² + ‖Q₁Q₂ᵀ‖²      (Frobenius norms)

    the importance of rank i in its plane: |λᵢ ∂L/∂λᵢ|, whatever the lengths of P and Q

This is a simplification: the paper multiplies its two LoRAs, here they are added; and its
importance also looks at entries of the factors, and averages over steps.

Pₖ (m, rₖ), λₖ (rₖ), Qₖ (rₖ, n), where W is (m, n); x (..., n). The planes' ranks may differ. The
letters are the paper's: PQ stands for what is BA elsewhere.

To think about: for each rank i, the inner product of P's column i with its gradient is λᵢ ∂L/∂λᵢ,
and so is that of Q's row i. Why? And what does it save?
"""
import torch
from torch import nn


def added(x, P1, lam1, Q1, P2, lam2, Q2):
    """What the planes add to the layer's output, x ΔWᵀ -> (..., m).

    Hint: neither ΔW nor a diagonal matrix is needed.
    """
    raise NotImplementedError


def penalty(P1, P2, Q1, Q2):
    """-> the penalty, a scalar tensor.

    Hint: six terms. Each is the squared norm of a matrix no larger than the ranks.
    """
    raise NotImplementedError


def penalty_gradient(P1, P2, Q1, Q2):
    """-> the penalty's gradients for P1, P2, Q1, Q2, in their shapes.

    By formula: training calls it where autograd is off.
    Hint: d‖M‖² = 2⟨M, dM⟩. In ‖PᵀP − I‖² P stands twice. Qᵀ is such a P.
    """
    raise NotImplementedError


def pruned(P, lam, Q, grad_lam, keep):
    """One plane, and ∂L/∂λ (r) -> P (m, keep), λ (keep), Q (keep, n), of the most important ranks.

    Exactly `keep` ranks, also where some are equally important: then any of those will do.
    Hint: a rank is a column of P, an entry of λ and a row of Q. Their order is free, if all three
    have the same.
    """
    raise NotImplementedError


# How it trains: AdamW, with a small multiple of the penalty's gradient added to the loss's. Each
# plane has half of LoRA's rank. λ starts at zero, so ΔW does; once, a quarter of each plane's ranks
# is pruned. adapter.pt holds the planes: sample.py knows only LoRA's factors and cannot load it.

TARGETS = ("c_attn", "c_proj", "c_fc")
WEIGHT = 0.1  # of the penalty
RATIO = 10  # λ's learning rate over P's and Q's: one λ has to move as far as a column of numbers
PRUNE_AT = 500  # the step after which a quarter of the ranks goes


class TwoPlanes(nn.Module):
    """A frozen linear layer, and what its two planes of rank r each add."""

    def __init__(self, linear, r):
        super().__init__()
        self.linear = linear
        m, n = linear.weight.shape
        P1, P2 = nn.init.orthogonal_(torch.empty(m, 2 * r)).chunk(2, dim=1)
        Q1, Q2 = nn.init.orthogonal_(torch.empty(2 * r, n)).chunk(2)
        self.set_planes((P1, torch.zeros(r), Q1), (P2, torch.zeros(r), Q2))

    def set_planes(self, first, second):
        self.P1, self.lam1, self.Q1 = (nn.Parameter(each.detach().clone()) for each in first)
        self.P2, self.lam2, self.Q2 = (nn.Parameter(each.detach().clone()) for each in second)

    def planes(self):
        return (self.P1, self.lam1, self.Q1), (self.P2, self.lam2, self.Q2)

    def forward(self, x):
        first, second = self.planes()
        return self.linear(x) + added(x, *first, *second)


def layers_of(model):
    return [module for module in model.modules() if isinstance(module, TwoPlanes)]


def groups_of(model, lr):
    planes = [plane for layer in layers_of(model) for plane in layer.planes()]
    factors = [factor for P, _, Q in planes for factor in (P, Q)]
    lams = [lam for _, lam, _ in planes]
    return [{"params": factors, "lr": lr}, {"params": lams, "lr": RATIO * lr}]


def adapt(model, rank):
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if name.endswith(TARGETS):
            model.set_submodule(name, TwoPlanes(module, max(1, rank // 2)))


def optimizer(model, lr):
    optimizer = torch.optim.AdamW(groups_of(model, lr), betas=(0.9, 0.95), weight_decay=0.0)

    @torch.no_grad()
    def before_step(*_):
        for layer in layers_of(model):
            factors = layer.P1, layer.P2, layer.Q1, layer.Q2
            for factor, gradient in zip(factors, penalty_gradient(*factors)):
                factor.grad += WEIGHT * gradient

    optimizer.register_step_pre_hook(before_step)
    return optimizer


def after_step(model, optimizer, step):
    if step != PRUNE_AT:
        return
    for layer in layers_of(model):
        smaller = []
        for P, lam, Q in layer.planes():
            grad_lam = optimizer.state[lam]["exp_avg"]  # Adam's mean: steadier than one batch's
            smaller.append(pruned(P, lam, Q, grad_lam, len(lam) - len(lam) // 4))
        layer.set_planes(*smaller)
    optimizer.state.clear()  # its moments have the old shapes
    for group, smaller in zip(optimizer.param_groups, groups_of(model, 0.0)):
        group["params"] = smaller["params"]
