"""6. The serial adapter (Houlsby et al., arXiv 1902.00751, §2.1 and figure 2).

Before LoRA, a frozen network was adapted by small new layers in series with its own. After each
sublayer (attention, MLP), and before its output h joins the residual stream, an adapter squeezes h
through a bottleneck of width m, bends it, widens it again, and adds it to h:

    f(h) = h + GELU(h W_downᵀ + b_down) W_upᵀ + b_up        GELU(z) = z·Φ(z)

Φ is the standard normal distribution function. d is the model's width, n_embd. h (..., d), W_down
(m, d), b_down (m,), W_up (d, m), b_up (d,); rows are positions, and weights are as in nn.Linear.

With W_up and b_up zero the adapter changes nothing: training starts from the base, exactly. (The
paper starts from small random numbers, so almost from the base. It also trains the layer norms;
here they stay frozen, which is a simplification.)

To think about: LoRA costs nothing once it is merged. Why is there no weight that could take this
adapter in, and what does it cost for each token that is generated?
"""
import torch
from torch import nn


def initial(d, m):
    """-> {"W_down": (m, d), "b_down": (m,), "W_up": (d, m), "b_up": (d,)}, to start from.

    W_down is random, new in every call, its entries about 1/√d in size; the others are zero.
    All are float32, torch's default, which the model has, and each entry has its own memory: an
    optimizer will change it in place.

    Hint: if W_down were zero too, what would W_up's gradient be?
    """
    raise NotImplementedError


def adapter(h, W_down, b_down, W_up, b_up):
    """h (..., d) -> f(h) (..., d).

    Hint: GELU is the exact one of the formula, not the tanh approximation in model.py.
    """
    raise NotImplementedError


def parameter_count(d, m):
    """-> how many numbers one adapter trains.

    Hint: biases count.
    """
    raise NotImplementedError


# How it trains: an adapter after the attention and the MLP of each block, m = rank. With --rank 32
# it has as many numbers as LoRA with rank 8; give --lr 3e-3. The hook passes the sublayer's output
# through the adapter, before the block adds it to the residual stream.

def adapt(model, rank):
    model.requires_grad_(False)
    for block in model.transformer.h:
        for sublayer in (block.attn, block.mlp):
            for name, value in initial(model.config.n_embd, rank).items():
                sublayer.register_parameter(name, nn.Parameter(value))
            sublayer.register_forward_hook(through_adapter)


def through_adapter(sublayer, inputs, h):
    return adapter(h, sublayer.W_down, sublayer.b_down, sublayer.W_up, sublayer.b_up)
