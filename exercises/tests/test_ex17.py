"""Grades ex17_beyond_linear.py."""
import pytest
import torch
from torch.nn.functional import conv2d

from exercises.tests.checks import holds, same, tensor

VOCAB, D, M, N, K, R, S = 11, 4, 5, 3, 3, 2, 1.7


@pytest.fixture
def table(draw):
    """wte, A, B of an embedding."""
    return draw(VOCAB, D), draw(R, VOCAB), draw(D, R)


@pytest.fixture
def factors(draw):
    """A, B of a convolution."""
    return draw(R, N, K, K), draw(M, R, 1, 1)


@pytest.fixture
def attention(draw):
    """A_q, B_q, A_v, B_v."""
    return draw(R, D), draw(D, R), draw(R, D), draw(D, R)


@pytest.mark.points(2)
def test_the_embeddings_are_rows_of_the_merged_table(ex, table, draw):
    wte, A, B = table
    merged = wte + S * torch.einsum("dr,rv->vd", B, A)
    tokens = draw(2, 6, VOCAB).argmax(dim=-1)
    found = tensor(ex.embedding(tokens, wte, A, B, S), (2, 6, D), "the embeddings")
    same(found, merged[tokens], "an embedding must be its token's row of wte + s (BA)ᵀ")
    everything = ex.embedding(torch.arange(VOCAB), wte, A, B, S)
    same(everything, merged, "the embeddings of all tokens must be the merged table")
    same(ex.embedding(torch.tensor(7), wte, A, B, S), merged[7], "tokens may be a single number")


@pytest.mark.points(2)
def test_two_thin_convolutions_are_one_kernel(ex, factors, draw):
    A, B = factors
    x, W = draw(2, N, 9, 8), draw(M, N, K, K)
    expected = torch.zeros_like(W)
    for o in range(M):
        for i in range(N):
            for j in range(R):
                expected[o, i] += S * B[o, j, 0, 0] * A[j, i]
    found = tensor(ex.kernel(A, B, S), (M, N, K, K), "the kernel")
    same(found, expected, "ΔW[o, i] must be s Σⱼ B[o, j] A[j, i]")
    same(conv2d(x, W + found) - conv2d(x, W), ex.convolution(x, A, B, S, 1, 0),
         "the merged convolution must compute what the frozen one and the adapter compute")


@pytest.mark.points(2)
def test_the_convolutions_have_the_layers_stride_and_padding(ex, factors, draw):
    A, B = factors
    x = draw(2, N, 9, 8)
    expected_kernel = S * torch.einsum("oj,jikl->oikl", B[..., 0, 0], A)
    for stride, padding in ((1, 1), (2, 0), (2, 1), (3, 2)):
        expected = conv2d(x, expected_kernel, stride=stride, padding=padding)
        found = ex.convolution(x, A, B, S, stride, padding)
        tensor(found, expected.shape, f"with stride {stride} and padding {padding}, the result")
        same(found, expected, f"with stride {stride} and padding {padding}, the adapter must "
                              "compute what a convolution with ΔW computes")


@pytest.mark.points(2)
def test_query_and_value_are_adapted_and_the_key_is_not(ex, attention, draw):
    A_q, B_q, A_v, B_v = attention
    x = draw(2, 5, D)
    found = tensor(ex.query_value(x, *attention, S), (2, 5, 3 * D), "what the adapter adds")
    query, key, value = found.split(D, dim=-1)
    holds(not key.any(), f"the key's part must be exactly zero: its norm is {key.norm():.2g}")
    same(query, S * torch.einsum("dr,rn,abn->abd", B_q, A_q, x),
         "the first d numbers are the query's: they must be s (x A_qᵀ) B_qᵀ")
    same(value, S * torch.einsum("dr,rn,abn->abd", B_v, A_v, x),
         "the last d numbers are the value's: they must be s (x A_vᵀ) B_vᵀ")
    W = draw(3 * D, D)
    delta = torch.cat((S * B_q @ A_q, torch.zeros_like(W[:D]), S * B_v @ A_v))
    same(x @ W.T + found, x @ (W + delta).T, "the merged layer must compute the same")


def test_nothing_is_added_while_b_is_zero(ex, table, factors, attention, draw):
    wte, A, B = table
    tokens = torch.arange(VOCAB)
    same(ex.embedding(tokens, wte, A, 0 * B, S), wte, "with B = 0, the embeddings must be wte's")
    A, B = factors
    for what, value in (("kernel", ex.kernel(A, 0 * B, S)),
                        ("convolution", ex.convolution(draw(1, N, 5, 5), A, 0 * B, S, 1, 1))):
        same(value, torch.zeros_like(value), f"with B = 0, {what} must be zero")
    A_q, B_q, A_v, B_v = attention
    value = ex.query_value(draw(3, D), A_q, 0 * B_q, A_v, 0 * B_v, S)
    same(value, torch.zeros_like(value), "with B_q = B_v = 0, query_value must be zero")


def test_the_counts(ex):
    for vocab, d, m, n, k, r in ((VOCAB, D, M, N, K, R), (2048, 256, 64, 3, 7, 8)):
        shapes = {"embedding": [(r, vocab), (d, r)],
                  "convolution": [(r, n, k, k), (m, r, 1, 1)],
                  "query_value": [(r, d), (d, r), (r, d), (d, r)]}
        found = ex.parameter_counts(vocab, d, m, n, k, r)
        holds(isinstance(found, dict) and set(found) == set(shapes),
              f"parameter_counts must be a dict with a number for each of {', '.join(shapes)}")
        for layer, factors in shapes.items():
            entries = sum(torch.zeros(shape).numel() for shape in factors)
            holds(found[layer] == entries and isinstance(found[layer], int),
                  f"{layer}: parameter_counts says {found[layer]}, but the factors do not have so "
                  "many entries")
