"""13. RunLoRA (Cherniuk et al., arXiv 2312.03415): the cheapest way to compute LoRA.

LoRA's layer is one formula, but a product of three matrices can be made in two orders, and which is
cheaper depends on the shapes. RunLoRA counts, for each layer and each size of batch, and takes the
cheapest way forward and the cheapest way back. All ways compute the same, except for rounding.

On purpose the weights stand to the right of X, as in exercise 1: X (tokens, n), W (n, m) frozen,
A (n, r), B (r, m), with the scale s already in A; Y (tokens, m), and dY = ∂L/∂Y. "thin" keeps to
products as thin as r, "dense" makes one as large as W:

          thin                       dense
    Y     X W + (X A) B              X (W + A B)
    dX    dY Wᵀ + (dY Bᵀ) Aᵀ         dY (W + A B)ᵀ
    dA    Xᵀ (dY Bᵀ)                 (Xᵀ dY) Bᵀ
    dB    (X A)ᵀ dY                  Aᵀ (Xᵀ dY)

A way forward is "thin" or "dense". A way back has three such words, for dX, dA and dB in this
order, as in "thin dense dense", so there are eight. What two of the three share, dY Bᵀ or Xᵀ dY, is
made once. Nothing is kept from the way forward but X, W, A and B. (The paper has two ways forward
and five back, and looks at measured time as well; here are all combinations, by flops alone.)

The price of a way, in flops: (a, b) times (b, c) costs 2abc, one multiplication and one addition
for each of abc terms. Only products of matrices count; additions, also that of W + A B, are free. A
way makes exactly the products that it pays for.

To think about: from how many tokens on is X (W + A B) the cheaper one? Its price leaves out memory:
what does each way have to store, and what will a bfloat16 W do to a small A B?
"""
import itertools
import types

import torch

import lora

BACKWARD_WAYS = [" ".join(words) for words in itertools.product(("thin", "dense"), repeat=3)]


def forward_flops(tokens, n, m, r):
    """-> a dict with the flops, a whole number, of each way forward: {"thin": ..., "dense": ...}.

    Hint: list the products of the table, with their shapes.
    """
    raise NotImplementedError


def backward_flops(tokens, n, m, r):
    """-> a dict with the flops, a whole number, of each of the eight BACKWARD_WAYS.

    "thin thin thin" has six: dY Wᵀ, dY Bᵀ (shared), (dY Bᵀ) Aᵀ, Xᵀ (dY Bᵀ), X A and (X A)ᵀ dY.
    Hint: count the shared products apart, if anything in this way needs them.
    """
    raise NotImplementedError


def forward(X, W, A, B, way):
    """-> Y (tokens, m), computed in the order that `way` says.

    Hint: Python multiplies from left to right; brackets change that.
    """
    raise NotImplementedError


def backward(X, W, A, B, dY, way):
    """dY (tokens, m) -> dX (tokens, n), dA (n, r), dB (r, m), in the orders that `way` says.

    Hint: make what is shared first, if it is needed.
    """
    raise NotImplementedError


# How it trains: as LoRA, and to the same weights except for rounding. Each layer takes the ways
# that are cheapest for the size of the batch.


def cheapest(flops):
    return min(flops, key=flops.get)


class RunLoRA(torch.autograd.Function):
    """Y = X (W + A B), by the functions above; within these two, their names mean those."""

    @staticmethod
    def forward(ctx, X, W, A, B):
        ctx.save_for_backward(X, W, A, B)
        return forward(X, W, A, B, cheapest(forward_flops(len(X), *W.shape, len(B))))

    @staticmethod
    def backward(ctx, dY):
        X, W, A, B = ctx.saved_tensors
        way = cheapest(backward_flops(len(X), *W.shape, len(B)))
        dX, dA, dB = backward(X, W, A, B, dY, way)
        return dX, None, dA, dB


def layer_forward(layer, x):
    """What LoRALinear.forward computes: x (..., n) -> (..., m)."""
    if layer.merged:
        return layer.linear(x)
    device = x.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else x.dtype
    matrices = (x.flatten(0, -2), layer.linear.weight.T, layer.scale * layer.lora_A.T,
                layer.lora_B.T)
    Y = RunLoRA.apply(*(matrix.to(dtype) for matrix in matrices))
    Y = Y.view(*x.shape[:-1], -1)
    return Y if layer.bias is None else Y + layer.bias.to(dtype)


def adapt(model, rank):
    lora.apply_lora(model, rank)  # without dropout: the dense way has no place for it
    for layer in lora.lora_layers(model).values():
        layer.forward = types.MethodType(layer_forward, layer)
