"""11. LoRA-Pro (Wang et al., arXiv 2407.18242, theorems 2.1 to 2.3).

A step of LoRA moves W by s·(B ΔA + ΔB A). Of all such moves, which is the nearest to the step −G
that full fine-tuning would make? With H = B(BᵀB)⁻¹Bᵀ, the projection onto B's columns,

    g_A = (1/s²) (BᵀB)⁻¹ ∇A + X A
    g_B = (1/s²) (I − H) ∇B (AAᵀ)⁻¹ − B X

make s·(B g_A + g_B A) the projection of G onto what LoRA can do, whatever X (r, r) is. The paper
takes the X with which g_A and g_B are nearest to LoRA's own gradients. It solves a Sylvester
equation,

    BᵀB X + X AAᵀ = −(1/s²) (BᵀB)⁻¹ ∇A Aᵀ

B (m, r), A (r, n), ∇A = s BᵀG (r, n), ∇B = s GAᵀ (m, r).

To think about: why does the move not depend on X? Which A and B give the same W, and the same move?
"""
import torch

import lora


def sylvester(K, L, C):
    """Symmetric positive definite K, L (r, r), and C (r, r) -> X with K X + X L = C.

    Hint: in the eigenvectors of K and L the equation is a division, entry by entry.
    """
    raise NotImplementedError


def adjusted(grad_A, grad_B, A, B, s):
    """LoRA's gradients -> g_A (r, n), g_B (m, r). A and B have rank r.

    Hint: solve with BᵀB and AAᵀ (r, r); H (m, m) is never needed.
    """
    raise NotImplementedError


# How it trains: Adam on the adjusted gradients, at a small rate: give --lr 4e-3. (The paper's Adam
# keeps moments of the full size; this simplification needs none, but Adam divides each entry by its
# size, so that the move is no projection any more.) B = 0 has no inverse, so it starts small and
# random, taken out of W0.


def adapt(model, rank):
    lora.apply_lora(model, rank)
    for layer in lora.lora_layers(model).values():
        A, B = layer.lora_A.detach().clone(), 0.02 * torch.randn_like(layer.lora_B)
        lora.start_from(layer, A, B)


def optimizer(model, lr):
    optimizer = torch.optim.AdamW(lora.lora_plus_groups(model, lr, 1.0), betas=(0.9, 0.95),
                                  weight_decay=0.0)

    @torch.no_grad()
    def before_step(*_):
        for layer in lora.lora_layers(model).values():
            A, B = layer.lora_A, layer.lora_B
            A.grad, B.grad = adjusted(A.grad, B.grad, A, B, layer.scale)

    optimizer.register_step_pre_hook(before_step)
    return optimizer
