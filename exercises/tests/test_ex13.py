"""Grades ex13_run_lora.py."""
from itertools import product

import pytest
import torch

from exercises.tests.checks import holds, same, several, tensor

BACKWARD_WAYS = [" ".join(words) for words in product(("thin", "dense"), repeat=3)]
SHAPES = [(7, 5, 6, 2), (40, 6, 5, 3), (3, 8, 8, 2), (4, 8, 8, 3), (512, 256, 768, 8),
          (130, 1024, 256, 16), (192, 256, 768, 4)]  # tokens, n, m, r


@pytest.fixture
def problem(draw):
    """X, W, A, B and dY, for 9 tokens, n 5, m 6 and r 3."""
    return draw(9, 5), draw(5, 6), draw(5, 3), draw(3, 6), draw(9, 6)


def price(*products):
    """Flops of products, each ((rows, inner, columns), what it makes); the same one costs once."""
    return sum(2 * rows * inner * columns for (rows, inner, columns), _ in set(products))


def prices_forward(tokens, n, m, r):
    thin = ((tokens, n, m), "X W"), ((tokens, n, r), "X A"), ((tokens, r, m), "Y")
    dense = ((n, r, m), "A B"), ((tokens, n, m), "Y")
    return {"thin": price(*thin), "dense": price(*dense)}


def prices_back(tokens, n, m, r):
    dY_Bt, Xt_dY = ((tokens, m, r), "dY B'"), ((n, tokens, m), "X' dY")
    by_word = {
        "thin": [[((tokens, m, n), "dY W'"), dY_Bt, ((tokens, r, n), "dX")],
                 [dY_Bt, ((n, tokens, r), "dA")],
                 [((tokens, n, r), "X A"), ((r, tokens, m), "dB")]],
        "dense": [[((n, r, m), "A B"), ((tokens, m, n), "dX")],
                  [Xt_dY, ((n, m, r), "dA")],
                  [Xt_dY, ((r, n, m), "dB")]]}
    prices = {}
    for way in BACKWARD_WAYS:
        products = [by_word[word][i] for i, word in enumerate(way.split())]
        prices[way] = price(*sum(products, []))
    return prices


def only(found, ways, what):
    holds(isinstance(found, dict) and set(found) == set(ways),
          f"{what} is to be a dict with a number for each of {', '.join(ways)}")
    return found


def test_all_ways_forward_give_the_product_with_one_dense_weight(ex, problem):
    X, W, A, B, _ = problem
    for way in ("thin", "dense"):
        Y = tensor(ex.forward(X, W, A, B, way), (9, 6), "Y")
        same(Y, torch.einsum("tn,nm->tm", X, W + torch.einsum("nr,rm->nm", A, B)),
             f"the {way} way must give X (W + A B)")


@pytest.mark.points(2)
def test_the_flops_forward_are_those_of_its_products(ex):
    for tokens, n, m, r in SHAPES:
        found = only(ex.forward_flops(tokens, n, m, r), ("thin", "dense"), "forward_flops")
        by_hand = prices_forward(tokens, n, m, r)
        for way, flops in by_hand.items():
            holds(found[way] == flops,
                  f"forward, {way}: {found[way]} flops for tokens {tokens}, n {n}, m {m} and r {r} "
                  "are not those of its products")


@pytest.mark.points(3)
def test_all_ways_back_give_what_autograd_finds(ex, problem):
    X, W, A, B, dY = problem
    leaves = [each.clone().requires_grad_() for each in (X, A, B)]
    (leaves[0] @ (W + leaves[1] @ leaves[2]) * dY).sum().backward()
    for way in BACKWARD_WAYS:
        found = several(ex.backward(X, W, A, B, dY, way), 3, "backward")
        for name, mine, leaf in zip(("dX", "dA", "dB"), found, leaves):
            tensor(mine, leaf.shape, name)
            same(mine, leaf.grad, f"{name} of the way \"{way}\" must be what autograd finds")


@pytest.mark.points(3)
def test_the_flops_back_are_those_of_its_products(ex):
    for tokens, n, m, r in SHAPES:
        found = only(ex.backward_flops(tokens, n, m, r), BACKWARD_WAYS, "backward_flops")
        by_hand = prices_back(tokens, n, m, r)
        for way, flops in by_hand.items():
            holds(found[way] == flops,
                  f"back, {way}: {found[way]} flops for tokens {tokens}, n {n}, m {m} and r {r} "
                  "are not those of its products")


@pytest.mark.points(2)
def test_a_way_makes_the_products_that_it_pays_for(ex, problem):
    X, W, A, B, dY = problem
    sizes = 9, 5, 6, 3
    for way, price in prices_forward(*sizes).items():
        made = ex.flops("forward", X, W, A, B, way)
        holds(made == price, f"forward, {way}: its products must take {price} flops, and the "
                             f"products that were made took {made}")
    for way, price in prices_back(*sizes).items():
        made = ex.flops("backward", X, W, A, B, dY, way)
        holds(made == price, f"back, {way}: its products must take {price} flops, and the products "
                             f"that were made took {made}")
