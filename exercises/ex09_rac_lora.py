"""9. RAC-LoRA: a randomised asymmetric chain (Malinovsky et al., arXiv 2410.08305).

Does a chain of LoRAs arrive where full fine-tuning would? That can be proved if each link draws one
factor at random and freezes it, here B, and trains only the other, A, from zero. Multiply A's
gradient by (BᵀB)⁺ from the left (⁺ is the pseudo-inverse), which removes B's lengths and angles.
Then

    W ← W − η·H·G        H = B(BᵀB)⁺Bᵀ        G = ∂L/∂W

H is the projection onto B's columns. So W moves along the part of −G that this B can see, and the
loss cannot rise if η ≤ 1/L (L is the Lipschitz constant of G): it falls by (η/2)·‖HG‖² or more.
What one B does not see, another will: B's columns are orthonormal and of random direction. No
direction is likelier than another, and the mean of H is (r/m)·I. One fixed B would stop where
HG = 0, which is not where G = 0.

W, G (m, n), A (r, n), B (m, r), and LoRA's gradient ∇A = s·BᵀG (r, n), where W = W0 + s·BA.

To think about: on average a step sees r/m of the squared norm of G. How many links does it take at
least to reach any W? And why is r/m of the progress not r/m of the cost?
"""
import torch

import lora


def projection(B):
    """-> H (m, m). B may have dependent columns, or zero ones.

    Hint: (BᵀB)⁺Bᵀ has a shorter name.
    """
    raise NotImplementedError


def frozen_factor(m, r, seed):
    """-> B (m, r), float64, with orthonormal columns that span a random subspace.

    The same seed gives the same B, in another run too. Over all seeds no direction is likelier
    than another, and the mean of H is (r/m)·I. The random numbers that everybody shares are neither
    seeded nor used.
    Hint: which distribution favours no direction? Its numbers come from a torch.Generator.
    """
    raise NotImplementedError


def direction(grad_A, B, s):
    """From ∇A -> the direction D (r, n) of the step A ← A − η·D, which moves W0 + s·BA by −η·H·G.

    This holds for any B and s.

    Hint: neither H (m, m) nor G (m, n) is needed. Count the s: W has one, and ∇A another.
    """
    raise NotImplementedError


def restart(W0, A, B, s, seed):
    """-> the next link's W0 (m, n), A (r, n) and B (m, r), which is the seed's.

    Hint: the layer must compute the same, whatever the new B.
    """
    raise NotImplementedError


# How it trains: give --lr 2e-2. A new link every 50 steps, from Adam without a state. (The theorem
# is about gradient descent, and AdamW is outside of it: this is a simplification, and so is the
# one cosine over all links. With s = 1 and
# orthonormal B, as here, D is ∇A; `direction` is for the other cases.) The links so far are kept in
# lora_A0 and lora_B0, which adapter.pt adds to the last one: s·(BA − B0 A0). It is after step 51,
# 101, ... that a link ends, so that a run of 1000 steps does not end with a fresh one. sample.py
# reads up to min(m, n) / r links, 32 with rank 8.

EVERY = 50


def any_seed():
    return torch.randint(2 ** 31, ()).item()


def adapt(model, rank):
    lora.apply_lora(model, rank)
    for layer in lora.lora_layers(model).values():
        layer.lora_A0, layer.lora_B0 = layer.lora_A0[:0], layer.lora_B0[:, :0]
        layer.lora_A.data.zero_()
        layer.lora_B.data.copy_(frozen_factor(*layer.lora_B.shape, any_seed()))
        layer.lora_B.requires_grad_(False)


def optimizer(model, lr):
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr, betas=(0.9, 0.95), weight_decay=0.0)

    @torch.no_grad()
    def before_step(*_):
        for layer in lora.lora_layers(model).values():
            layer.lora_A.grad = direction(layer.lora_A.grad, layer.lora_B, layer.scale)

    optimizer.register_step_pre_hook(before_step)
    return optimizer


@torch.no_grad()
def after_step(model, optimizer, step):
    if step <= EVERY or step % EVERY != 1:
        return
    for layer in lora.lora_layers(model).values():
        W0, A, B = layer.linear.weight, layer.lora_A, layer.lora_B
        layer.lora_A0 = torch.cat((layer.lora_A0, A))
        layer.lora_B0 = torch.cat((layer.lora_B0, -B), dim=1)
        for old, new in zip((W0, A, B), restart(W0, A, B, layer.scale, any_seed())):
            old.copy_(new)
    optimizer.state.clear()  # only A trains
