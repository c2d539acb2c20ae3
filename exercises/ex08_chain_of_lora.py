"""8. Chain of LoRA (Xia et al., arXiv 2401.04151).

One LoRA moves W by a matrix of rank r at most. A chain of them moves it further: train for a while,
merge the factors into W0, and train new ones on what is left to learn.

    W0 ← W0 + s·BA        A ← a new random one        B ← 0        Adam's state ← none

After k links, W has moved by ΔW = s·(B₁A₁ + ... + B_k A_k), of rank k·r at most, though only
r·(m + n) numbers trained at a time. A restart does not move W, so the loss does not jump. Adam
starts afresh, since its moments were those of factors that are gone.

W0 (m, n), A (r, n), B (m, r), s a number.

To think about: what does Adam do in the first steps of a link if it keeps the old moments? And a
LoRA of rank k·r could reach every ΔW that the chain can: what does the chain save, and what not?
"""
import torch

import lora


def restart(W0, A, B, s):
    """-> the next link's W0 (m, n), A (r, n), B (m, r).

    A is new and random in every call, as LoRA starts it: uniform between −1/√n and 1/√n.
    Hint: a new A has nothing of the old one, so that a new link can go where the old one could not.
    """
    raise NotImplementedError


def restarted_state(state, names):
    """Adam's state {parameter's name: {"exp_avg": ..., "exp_avg_sq": ..., "step": ...}} -> a new
    dict without the parameters in `names`. What it keeps is unchanged, and so is the old dict.
    Names are compared whole: h.1.lora_A is not h.10.lora_A.

    Hint: a parameter that has never had a gradient has no state.
    """
    raise NotImplementedError


def as_one(links):
    """[(A₁, B₁), ..., (A_k, B_k)], of ranks r₁, ..., r_k -> one A (Σr, n) and one B (m, Σr) with
    BA = B₁A₁ + ... + B_k A_k: the chain as a single adapter, for the untouched W0.

    Hint: block matrices.
    """
    raise NotImplementedError


# How it trains: a restart every 200 steps. The links so far are kept in lora_A0 and lora_B0, which
# adapter.pt adds to the last one: s·(BA − B0 A0). It is after step 201, 401, ... that a link ends,
# so that a run of 1000 steps does not end with a fresh one. train.py's one cosine goes over all
# links, so that the last moves little; give --lr 5e-3.

EVERY = 200


def adapt(model, rank):
    lora.apply_lora(model, rank)
    for layer in lora.lora_layers(model).values():
        layer.lora_A0, layer.lora_B0 = layer.lora_A0[:0], layer.lora_B0[:, :0]


@torch.no_grad()
def after_step(model, optimizer, step):
    if step <= EVERY or step % EVERY != 1:
        return
    for layer in lora.lora_layers(model).values():
        W0, A, B = layer.linear.weight, layer.lora_A, layer.lora_B
        links = as_one([(layer.lora_A0, -layer.lora_B0), (A, B)])
        layer.lora_A0, layer.lora_B0 = links[0], -links[1]
        for old, new in zip((W0, A, B), restart(W0, A, B, layer.scale)):
            old.copy_(new)
    clear_state(model, optimizer)


def clear_state(model, optimizer):
    names = {p: name for name, p in model.named_parameters()}
    state = {names[p]: moments for p, moments in optimizer.state.items()}
    factors = [name for name in state if name.endswith((".lora_A", ".lora_B"))]
    left = restarted_state(state, factors)
    for p in list(optimizer.state):
        if names[p] not in left:
            del optimizer.state[p]
