"""13. RunLoRA (Cherniuk et al., arXiv 2312.03415): the cheapest way to compute LoRA.

LoRA's layer is one formula, but a product of three matrices can be made in two orders, and which
is cheaper depends on the shapes. RunLoRA counts, for each layer and each size of batch, and takes
the cheapest way forward and the cheapest way back. All ways give the same, but for rounding.

Here rows are examples: X (tokens, n), W (n, m) frozen, A (n, r), B (r, m), with the scale s already
in A; Y (tokens, m), and dY = ∂L/∂Y. "thin" keeps to products as thin as r, "dense" makes one as
large as W:

          thin                       dense
    Y     X W + (X A) B              X (W + A B)
    dX    dY Wᵀ + (dY Bᵀ) Aᵀ         dY (W + A B)ᵀ
    dA    Xᵀ (dY Bᵀ)                 (Xᵀ dY) Bᵀ
    dB    (X A)ᵀ dY                  Aᵀ (Xᵀ dY)

A way forward is "thin" or "dense". A way back has three such words, for dX, dA and dB in this
order, as in "thin dense dense", so there are eight. What two of the three share, dY Bᵀ or Xᵀ dY, is
made once. Nothing is kept from the way forward but X, W, A and B. (The paper has two ways forward
and five back, and looks at measured time as well; here are all combinations, by flops alone.)

The price of a way, in flops: (a, b) times (b, c) costs 2abc, a multiplication and an addition each
for abc terms. Only products of matrices count; additions, also that of W + A B, are free.

To think about: from how many tokens on is X (W + A B) the cheaper one? Its price leaves out memory:
what does each way have to store, and what will a bfloat16 W do to a small A B?
"""
import itertools
import types

import torch

import lora

BACKWARD_WAYS = [" ".join(words) for words in itertools.product(("thin", "dense"), repeat=3)]

TO_WRITE = ("forward_flops", "backward_flops", "forward", "backward")


def forward_flops(tokens, n, m, r):
    """-> a dict with the flops, a whole number, of each way forward: {"thin": ..., "dense": ...}.

    Hint: list the products of the table, with their shapes.
    """
    return {"thin": 2 * tokens * (n * m + n * r + r * m), "dense": 2 * n * m * (r + tokens)}


def backward_flops(tokens, n, m, r):
    """-> a dict with the flops, a whole number, of each of the eight BACKWARD_WAYS.

    "thin thin thin" has six: dY Wᵀ, dY Bᵀ (shared), (dY Bᵀ) Aᵀ, Xᵀ (dY Bᵀ), X A and (X A)ᵀ dY.
    Hint: count the shared products apart, if anything in this way needs them.
    """
    flops = {}
    for way in BACKWARD_WAYS:
        dX, dA, dB = way.split()
        dY_Bt = tokens * m * r if "thin" in (dX, dA) else 0
        Xt_dY = n * tokens * m if "dense" in (dA, dB) else 0
        for_dX = tokens * m * n + (tokens * r * n if dX == "thin" else n * r * m)
        for_dA = n * tokens * r if dA == "thin" else n * m * r
        for_dB = tokens * n * r + r * tokens * m if dB == "thin" else r * n * m
        flops[way] = 2 * (dY_Bt + Xt_dY + for_dX + for_dA + for_dB)
    return flops


def forward(X, W, A, B, way):
    """-> Y (tokens, m), computed in the order that `way` says.

    Hint: Python multiplies from left to right; brackets change that.
    """
    if way == "thin":
        return X @ W + (X @ A) @ B
    return X @ (W + A @ B)


def backward(X, W, A, B, dY, way):
    """dY (tokens, m) -> dX (tokens, n), dA (n, r), dB (r, m), in the orders that `way` says.

    Hint: make what is shared first, if it is needed.
    """
    for_dX, for_dA, for_dB = way.split()
    dY_Bt = dY @ B.T if "thin" in (for_dX, for_dA) else None  # (tokens, r)
    Xt_dY = X.T @ dY if "dense" in (for_dA, for_dB) else None  # (n, m)
    dX = dY @ W.T + dY_Bt @ A.T if for_dX == "thin" else dY @ (W + A @ B).T
    dA = X.T @ dY_Bt if for_dA == "thin" else Xt_dY @ B.T
    dB = (X @ A).T @ dY if for_dB == "thin" else A.T @ Xt_dY
    return dX, dA, dB


# How it trains: as LoRA, and to the same weights but for rounding; each layer takes the ways that
# are cheapest for the batch at hand.


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
