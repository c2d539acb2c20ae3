"""Grades ex15_res_lora.py."""
import pytest
import torch

from exercises.tests.checks import same, tensor

BLOCKS, M, N, R = 4, 7, 6, 2


@pytest.fixture
def chain(draw):
    xs = [draw(2, 5, N) for _ in range(BLOCKS)]
    As = [draw(R, N) for _ in range(BLOCKS)]
    Bs = [draw(M, R) for _ in range(BLOCKS)]
    return xs, As, Bs, 1.7


def computed(function, chain, i, name):
    """What the answer gives for block i, if it is a (2, 5, M) tensor."""
    xs, As, Bs, s = chain
    return tensor(function(xs, As, Bs, s, i), (2, 5, M), f"{name} of block {i}")


@pytest.mark.points(2)
def test_the_input_shortcut_adds_the_input_of_the_block_before(ex, chain):
    xs, As, Bs, s = chain
    for i in range(1, BLOCKS):
        h = computed(ex.input_shortcut, chain, i, "the input-shortcut")
        dense = s * Bs[i] @ As[i]
        same(h, xs[i] @ dense.T + xs[i - 1] @ dense.T,
             f"block {i}'s BA must act on its input and on that of block {i - 1}")


@pytest.mark.points(2)
def test_the_block_shortcut_is_the_sum_over_the_adapters(ex, chain):
    xs, As, Bs, s = chain
    for i in range(BLOCKS):
        h = computed(ex.block_shortcut, chain, i, "the block-shortcut")
        expected = torch.zeros(2, 5, M, dtype=h.dtype)
        for k in range(i + 1):
            expected += s * torch.einsum("mr,rn,abn->abm", Bs[k], As[k], xs[i])
        same(h, expected, f"the adapters of blocks 0 to {i} must all act on block {i}'s input")
        alone = [None] * i + [xs[i]]
        same(ex.block_shortcut(alone, As, Bs, s, i), expected, "no other block's input is needed")


@pytest.mark.points(2)
def test_the_middle_shortcut_is_the_sum_before_the_last_factor(ex, chain):
    xs, As, Bs, s = chain
    for i in range(BLOCKS):
        h = computed(ex.middle_shortcut, chain, i, "the middle-shortcut")
        expected = torch.zeros(2, 5, M, dtype=h.dtype)
        for k in range(i + 1):
            expected += s * torch.einsum("mr,rn,abn->abm", Bs[i], As[k], xs[k])
        same(h, expected, f"block {i}'s B must act on the sum of each block's A on its own input")


def test_the_first_block_is_loras(ex, chain):
    xs, As, Bs, s = chain
    expected = xs[0] @ (s * Bs[0] @ As[0]).T
    for name in ("input_shortcut", "block_shortcut", "middle_shortcut"):
        h = computed(getattr(ex, name), chain, 0, name)
        same(h, expected, f"{name}: block 0 has none before it, and must be LoRA's")


def test_nothing_is_added_while_b_is_zero(ex, chain):
    xs, As, Bs, s = chain
    zero = xs, As, [torch.zeros_like(B) for B in Bs], s
    for name in ("input_shortcut", "block_shortcut", "middle_shortcut"):
        for i in range(BLOCKS):
            h = computed(getattr(ex, name), zero, i, name)
            same(h, torch.zeros_like(h), f"{name} of block {i} must add nothing while all B are 0")


@pytest.mark.points(2)
def test_the_block_shortcut_merges_exactly(ex, chain):
    xs, As, Bs, s = chain
    for i in range(BLOCKS):
        delta = tensor(ex.merged_block(As, Bs, s, i), (M, N), f"ΔW of block {i}")
        stacked = s * torch.cat(Bs[:i + 1], dim=1) @ torch.cat(As[:i + 1])
        same(delta, stacked, f"ΔW of block {i} must be that of the adapters of blocks 0 to {i}")
        same(xs[i] @ delta.T, ex.block_shortcut(xs, As, Bs, s, i),
             f"block {i}: x ΔWᵀ must be the block-shortcut")
