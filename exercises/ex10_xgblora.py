"""10. XGBLoRA (Zhang et al., arXiv 2410.19694): boosting with LoRA of rank 1.

Gradient boosting adds up weak learners, each fitted to what the sum so far still gets wrong. Here
the weak learner, the booster, is a LoRA of rank 1 in some layers, drawn at random. It trains for a
few steps, is merged into the frozen weights, and the next one starts:

    W_t = W_{t−1} + α · b_t a_t        b_t (m, 1), a_t (1, n), W (m, n)

So each round costs as little as rank 1, and T rounds reach rank T. What boosting does can be seen
exactly where the loss is ‖E − Σ α b_t a_t‖²_F. E (m, n) is the error, what W lacks. There the best
booster is known, and with α = 1 the rounds find E's singular directions, the largest first.

Here α is one constant in all rounds. A booster trains with it as its scale s, so that merging does
not change the model. In `boost` a booster is fitted in full, and α times the booster is added: the
shrinkage of gradient boosting.

To think about: with α = 1 and the best boosters, no round repairs an earlier one. Why might it pay
to add less than the whole, when boosters are found by a few steps of Adam on small batches?
"""
import random

import torch

import lora


def booster(E):
    """E (m, n) -> b (m, 1), a (1, n) with the smallest ‖E − b a‖_F. For E = 0, b a is 0.

    Only the product counts: 2b and a/2 are the same booster.
    Hint: this is the theorem of Eckart and Young, at rank 1.
    """
    raise NotImplementedError


def boost(E, rounds, rate):
    """-> a list of `rounds` boosters (b, a) whose sum, rate · Σ b a, comes nearer and nearer to E.

    Each is the best one for the error that the sum before it has left. 0 < rate ≤ 1.
    Hint: a booster is found in full, and rate times the booster is added.
    """
    raise NotImplementedError


def merge(W, b, a, new_a, rate):
    """The end of a round -> W (m, n), b (m, 1) and a (1, n) for the next, which begins with new_a.

    The layer computes x Wᵀ + rate · (x aᵀ) bᵀ. It must compute the same before and after, and the
    next booster must be able to learn.
    Hint: it is the start of any LoRA, on a new frozen weight.
    """
    raise NotImplementedError


def chosen_layers(names, count, round):
    """A list of names -> `count` different ones of them, in any order: the layers of this round.

    The same round (0, 1, ...) has the same layers whenever it is asked for, in another run too;
    over many rounds every choice of `count` names comes equally often, whatever the round before
    has. The random numbers that everybody shares are neither seeded nor used.
    Hint: a generator of its own, with the round as its seed.
    """
    raise NotImplementedError


# How it trains: boosters of rank 1, whatever --rank says, on half of the layers; the other factors
# are frozen. Give --lr 3e-2. What ROUND steps of Adam find takes the place of the best booster.
# Merged ones are in the frozen weights: adapter.pt holds only the last booster.
# A round ends after step 26, 51, ..., so that a run of 1000 steps does not end with a fresh one.
# One cosine goes over all rounds.

ROUND = 25  # steps
RATE = 1.0


def choose(model, round):
    layers = lora.lora_layers(model)
    chosen = chosen_layers(list(layers), len(layers) // 2, round)
    for name, layer in layers.items():
        layer.lora_A.requires_grad_(name in chosen)
        layer.lora_B.requires_grad_(name in chosen)


def adapt(model, rank):
    lora.apply_lora(model, rank=1, alpha=RATE)
    choose(model, torch.randint(2 ** 31, ()).item())


@torch.no_grad()
def after_step(model, optimizer, step):
    if step <= ROUND or step % ROUND != 1:
        return
    for layer in lora.lora_layers(model).values():
        W, B, A = layer.linear.weight, layer.lora_B, layer.lora_A
        random_A = torch.nn.init.kaiming_uniform_(torch.empty_like(A), a=5 ** 0.5)
        new_W, new_B, new_A = merge(W, B, A, random_A, layer.scale)
        W.copy_(new_W)
        B.copy_(new_B)
        A.copy_(new_A)
    optimizer.state.clear()  # Adam's moments belong to the booster that is gone
    choose(model, torch.randint(2 ** 31, ()).item())
