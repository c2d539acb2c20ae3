"""15. ResLoRA (Shi et al., arXiv 2402.18039: its three structures).

In a deep model the gradient comes a long way before it reaches the first blocks' adapters. ResLoRA
gives it short cuts while training: block i's adapter also takes in something of the blocks before,

    input-shortcut    h = s·BᵢAᵢ (xᵢ + xᵢ₋₁)       the input of the block before
    block-shortcut    h = s·Σₖ BₖAₖ xᵢ             the adapters of the blocks before, on this input
    middle-shortcut   h = s·Bᵢ Σₖ Aₖxₖ             what the blocks before made of their own inputs

where k runs from 0 to i, and h is what the adapter adds to the output of its frozen layer. Only the
block-shortcut is a function of xᵢ alone, so only it can be merged exactly; the paper merges the two
others approximately. (Two simplifications: block 0 has none before it, and is LoRA, where the
authors' code adds its own input; and their code can also stop some blocks back.)

There is a list entry for each block, for one kind of layer (all c_fc, say): xs[k] (..., n), As[k]
(r, n), Bs[k] (m, r); s is a number. The lists may go on beyond block i.

To think about: how large can the rank of the block-shortcut's ΔW be in block i? And how many more
parameters than LoRA's does that take?
"""
import functools

import lora


def input_shortcut(xs, As, Bs, s, i):
    """-> h (..., m) of block i. Block 0 has none before it: there h is LoRA's.

    Hint: what does xs[i - 1] mean to Python if i is 0?
    """
    raise NotImplementedError


def block_shortcut(xs, As, Bs, s, i):
    """-> h (..., m) of block i. It uses xs[i] alone: the others may be None.

    Hint: the inner products are thin; an (m, n) matrix is never needed.
    """
    raise NotImplementedError


def middle_shortcut(xs, As, Bs, s, i):
    """-> h (..., m) of block i.

    Hint: what is summed has r numbers for each position, and passes through one B.
    """
    raise NotImplementedError


def merged_block(As, Bs, s, i):
    """The one ΔW (m, n) with which block_shortcut is x ΔWᵀ -> ΔW."""
    raise NotImplementedError


# How it trains: LoRA's layers, with the block-shortcut in place of their forward pass. When the
# model is evaluated, each block has its merged ΔW: the same function. adapter.pt holds only the
# factors: sample.py makes plain LoRA of them, without the shortcuts, which is not what was trained.

def chains(model):
    """The layers of one kind, block by block -> {"attn.c_attn": [LoRALinear, ...], ...}."""
    found = {}
    for name, layer in lora.lora_layers(model).items():
        kind = name.split(".", 3)[3]  # transformer.h.0.attn.c_attn
        found.setdefault(kind, []).append(layer)
    return found


def forward(chain, i, x):
    """Takes the place of chain[i].forward."""
    layer = chain[i]
    As, Bs = [each.lora_A for each in chain], [each.lora_B for each in chain]
    if layer.training:
        xs = [None] * i + [x]  # the block-shortcut needs no other block's input
        return layer.linear(x) + block_shortcut(xs, As, Bs, layer.scale, i)
    return layer.linear(x) + x @ merged_block(As, Bs, layer.scale, i).T


def adapt(model, rank):
    lora.apply_lora(model, rank)
    for chain in chains(model).values():
        for i, layer in enumerate(chain):
            layer.forward = functools.partial(forward, chain, i)
