"""Answers to exercise 15 that the grader must tell from right ones, and one more right one."""
WRONG = {
    "the first block takes the last block's input": ("xs[i] if i == 0 else ", ""),
    "the first block takes its own input twice": ("xs[i] if i == 0", "2 * xs[i] if i == 0"),
    "the input-shortcut goes back to the first block": ("xs[i] + xs[i - 1]", "xs[i] + xs[0]"),
    "the input-shortcut lacks the scale": ("s * (x @ As[i].T)", "(x @ As[i].T)"),
    "the block-shortcut leaves out its own block": ("zip(As[:i + 1], Bs)]", "zip(As[:i], Bs)]"),
    "the block-shortcut takes each block's own input": (
        "[(x @ A.T) @ B.T for A, B in zip(As[:i + 1], Bs)]",
        "[(x @ A.T) @ B.T for x, A, B in zip(xs, As[:i + 1], Bs)]"),
    "the block-shortcut looks at the first block's input": (
        "    x = xs[i]\n    parts", "    x = xs[i].reshape(xs[0].shape)\n    parts"),
    "the middle-shortcut takes one block's input everywhere": (
        "[x @ A.T for x, A in zip(xs[:i + 1], As)]", "[xs[i] @ A.T for A in As[:i + 1]]"),
    "the middle-shortcut takes one block's A everywhere": (
        "[x @ A.T for x, A in zip(xs[:i + 1], As)]", "[x @ As[i].T for x in xs[:i + 1]]"),
    "all blocks are merged, later ones too": ("zip(As[:i + 1], Bs[:i + 1])", "zip(As, Bs)"),
    "only the block's own adapter is merged": ("s * sum(products)", "s * products[-1]"),
}

RIGHT = '''
import torch


def delta(A, B, s):
    return s * torch.einsum("mr,rn->mn", B, A)


def input_shortcut(xs, As, Bs, s, i):
    h = xs[i] @ delta(As[i], Bs[i], s).T
    if i:
        h = h + xs[i - 1] @ delta(As[i], Bs[i], s).T
    return h


def block_shortcut(xs, As, Bs, s, i):
    return xs[i] @ merged_block(As, Bs, s, i).T


def middle_shortcut(xs, As, Bs, s, i):
    wide = torch.cat(xs[:i + 1], dim=-1)
    return wide @ delta(torch.cat(As[:i + 1], dim=1), Bs[i], s).T


def merged_block(As, Bs, s, i):
    return delta(torch.cat(As[:i + 1]), torch.cat(Bs[:i + 1], dim=1), s)
'''
