"""17. LoRA beyond one linear layer (Hu et al., arXiv 2106.09685, and the layers of its code).

A model has weights that are no plain matrix. LoRA's idea, a frozen weight and a product of thin
factors beside it, fits three kinds of them as well.

**An embedding** wte (vocab, d) is a linear layer whose input is one token. With A (r, vocab) and
B (d, r), token t gets row t of s·(BA)ᵀ added:

    wte[t] + s · (A's column t) Bᵀ

**A convolution** has a kernel W (m, n, k, k): n channels in, m out. One thin convolution follows
another: A (r, n, k, k) makes r channels, and B (m, r, 1, 1) makes m channels of them. Together they
are one convolution with the kernel

    ΔW[o, i] = s · Σⱼ B[o, j] A[j, i]        for output channel o, input channel i, each (k, k)

**Query, key and value in one layer**: GPT-2's c_attn has one weight W (3d, d), whose rows are those
of the query, then the key, then the value. The paper adapts only the query and the value, each with
factors of its own, A_q and A_v (r, d), B_q and B_v (d, r):

    ΔW = s · [B_q A_q; 0; B_v A_v]        three blocks of d rows, one below the other

(The authors' code factors a convolution's kernel in another way, as (m·k, r·k) times (r·k, n·k).)

To think about: the output layer of GPT-2 uses the same wte. After merging an adapted embedding,
what else has changed? And why does an adapter of query and value alone leave a text's first
position as it was, as far as the query goes?
"""
import torch
from torch import nn

TARGET = "c_attn"


def embedding(tokens, wte, A, B, s):
    """tokens (...), whole numbers -> their adapted embeddings (..., d).

    Hint: BA (d, vocab) is as large as wte and is not needed. Indexing comes first.
    """
    raise NotImplementedError


def convolution(x, A, B, s, stride, padding):
    """x (batch, n, height, width) -> what the adapter adds (batch, m, new height, new width).

    The frozen layer is a torch.nn.functional.conv2d of this stride and padding.
    Hint: which of the two convolutions has the stride and the padding?
    """
    raise NotImplementedError


def kernel(A, B, s):
    """-> ΔW (m, n, k, k), for merging.

    Hint: torch.einsum says it in one line.
    """
    raise NotImplementedError


def query_value(x, A_q, B_q, A_v, B_v, s):
    """x (..., d) -> what the adapter adds to the layer's output, x ΔWᵀ (..., 3d).

    Hint: the key's part is exactly zero.
    """
    raise NotImplementedError


def parameter_counts(vocab, d, m, n, k, r):
    """-> {"embedding": ..., "convolution": ..., "query_value": ...}, how many numbers train."""
    raise NotImplementedError


# How it trains: query and value of each c_attn, and nothing else; with rank 8 a quarter of the
# numbers that LoRA has in all layers. Give --lr 1e-2, the only rate tried: in 1000 steps it learned
# 47 % of the sums and forgot 1.9 nats (one seed). adapter.pt holds these factors: sample.py,
# which knows only LoRA's, cannot load it.


class QueryValue(nn.Module):
    """A frozen c_attn with an adapter for the query and one for the value."""

    def __init__(self, linear, r):
        super().__init__()
        d = linear.in_features
        self.linear = linear
        self.A_q = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(r, d), a=5 ** 0.5))
        self.A_v = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(r, d), a=5 ** 0.5))
        self.B_q = nn.Parameter(torch.zeros(d, r))
        self.B_v = nn.Parameter(torch.zeros(d, r))

    def forward(self, x):
        return self.linear(x) + query_value(x, self.A_q, self.B_q, self.A_v, self.B_v, 1.0)


def adapt(model, rank):
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if name.endswith(TARGET):
            model.set_submodule(name, QueryValue(module, rank))
