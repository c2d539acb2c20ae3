"""Wrong answers to exercise 15, and right ones in another style, laid over the solution."""

# wrong: the first block takes the last block's input
def input_shortcut(xs, As, Bs, s, i):
    x = xs[i] + xs[i - 1]
    return s * (x @ As[i].T) @ Bs[i].T

# wrong: the first block takes its own input twice
def input_shortcut(xs, As, Bs, s, i):
    x = 2 * xs[i] if i == 0 else xs[i] + xs[i - 1]
    return s * (x @ As[i].T) @ Bs[i].T

# wrong: the input-shortcut goes back to the first block
def input_shortcut(xs, As, Bs, s, i):
    x = xs[i] if i == 0 else xs[i] + xs[0]
    return s * (x @ As[i].T) @ Bs[i].T

# wrong: the input-shortcut lacks the scale
def input_shortcut(xs, As, Bs, s, i):
    x = xs[i] if i == 0 else xs[i] + xs[i - 1]
    return (x @ As[i].T) @ Bs[i].T

# wrong: the block-shortcut leaves out its own block
def block_shortcut(xs, As, Bs, s, i):
    x = xs[i]
    parts = [(x @ A.T) @ B.T for A, B in zip(As[:i], Bs)]
    return s * sum(parts)

# wrong: the block-shortcut takes each block's own input
def block_shortcut(xs, As, Bs, s, i):
    x = xs[i]
    parts = [(x @ A.T) @ B.T for x, A, B in zip(xs, As[:i + 1], Bs)]
    return s * sum(parts)

# wrong: the block-shortcut looks at the first block's input
def block_shortcut(xs, As, Bs, s, i):
    x = xs[i].reshape(xs[0].shape)
    parts = [(x @ A.T) @ B.T for A, B in zip(As[:i + 1], Bs)]
    return s * sum(parts)

# wrong: the middle-shortcut takes one block's input everywhere
def middle_shortcut(xs, As, Bs, s, i):
    parts = [xs[i] @ A.T for A in As[:i + 1]]
    return s * sum(parts) @ Bs[i].T

# wrong: the middle-shortcut takes one block's A everywhere
def middle_shortcut(xs, As, Bs, s, i):
    parts = [x @ As[i].T for x in xs[:i + 1]]
    return s * sum(parts) @ Bs[i].T

# wrong: all blocks are merged, later ones too
def merged_block(As, Bs, s, i):
    products = [B @ A for A, B in zip(As, Bs)]
    return s * sum(products)

# wrong: only the block's own adapter is merged
def merged_block(As, Bs, s, i):
    products = [B @ A for A, B in zip(As[:i + 1], Bs[:i + 1])]
    return s * products[-1]

# right: another style
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
