"""Grades ex10_xgblora.py."""
from collections import Counter
from itertools import combinations, product

import pytest
import torch

from exercises.checks import different, holds, same, tensor, untouched

NAMES = ["h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.c_fc", "h.1.attn.c_attn", "h.1.mlp.c_fc"]


def truncated(R, rank):
    U, S, Vh = torch.linalg.svd(R)
    return U[:, :rank] * S[:rank] @ Vh[:rank]


def sums(boosters, rate, shape):
    """The sum after each round, from 0 rounds on."""
    total = torch.zeros(shape, dtype=torch.float64)
    yield total
    for b, a in boosters:
        total = total + rate * tensor(b, (shape[0], 1), "b") @ tensor(a, (1, shape[1]), "a")
        yield total


@pytest.mark.points(2)
def test_the_booster_is_the_best_of_rank_1(ex, draw):
    for m, n in [(7, 5), (4, 6)]:
        R = draw(m, n)
        b, a = untouched((R,), lambda: ex.booster(R))
        tensor(b, (m, 1), "b"), tensor(a, (1, n), "a")
        least = torch.linalg.svdvals(R)[1:].norm().item()
        here = (R - b @ a).norm().item()
        holds(here <= least + 1e-10, f"‖R − b a‖ is {here:.6g}, and {least:.6g} is possible")
        b, a = ex.booster(torch.zeros_like(R))
        tensor(b, (m, 1), "b for R = 0"), tensor(a, (1, n), "a for R = 0")
        same(b @ a, torch.zeros_like(R), "where nothing is left, b a is 0")


@pytest.mark.points(2)
def test_whole_boosters_add_up_to_the_truncated_svd(ex, draw):
    R = draw(7, 5)
    boosters = untouched((R,), lambda: ex.boost(R, 5, 1.0))
    holds(len(boosters) == 5, f"5 rounds make 5 boosters, not {len(boosters)}")
    for rounds, total in enumerate(sums(boosters, 1.0, R.shape)):
        same(total, truncated(R, rounds), f"with rate 1, the sum after {rounds} rounds must be R "
                                          "cut off at that rank", tolerance=1e-8)


@pytest.mark.points(2)
def test_shrunken_boosters_leave_the_residual_that_theory_says(ex, draw):
    R, rate = draw(7, 5), 0.2 + 0.6 * torch.sigmoid(draw(1)).item()
    left = torch.linalg.svdvals(R)
    before = float("inf")
    for rounds, total in enumerate(sums(ex.boost(R, 8, rate), rate, R.shape)):
        here = (R - total).norm()
        holds(here < before, f"the residual's norm must fall in each round: with rate {rate:.3g} "
                             f"it goes from {before:.6g} to {here:.6g} in round {rounds}")
        same(here, left.norm(), f"with rate {rate:.3g}, the residual's norm after {rounds} rounds "
                                "is not what the best boosters leave")
        rank = torch.linalg.matrix_rank(total).item()
        holds(rank <= rounds, f"{rounds} rounds make a sum of rank {rank}")
        left[left.argmax()] *= 1 - rate  # a round works on the largest singular value that is left
        before = here


@pytest.mark.points(2)
def test_merging_changes_nothing_that_the_layer_computes(ex, draw):
    x, W0 = draw(9, 5), draw(6, 5)
    W, rate, added = W0, 0.6, torch.zeros_like(W0)
    for rounds in range(1, 4):
        b, a, new_a = draw(6, 1), draw(1, 5), draw(1, 5)
        added = added + 0.6 * b @ a
        y = x @ W.T + rate * (x @ a.T) @ b.T
        W, b, a = untouched((W, b, a, new_a), lambda: ex.merge(W, b, a, new_a, rate))
        tensor(W, (6, 5), "W"), tensor(b, (6, 1), "b"), tensor(a, (1, 5), "a")
        same(x @ W.T + rate * (x @ a.T) @ b.T, y, "the layer must compute the same after a merge")
        same(W, W0 + added, f"after {rounds} rounds all {rounds} boosters must be in W")


def test_the_next_booster_can_learn(ex, draw):
    x, grad_y, new_a = draw(9, 5), draw(9, 6), draw(1, 5)
    W, b, a = ex.merge(draw(6, 5), draw(6, 1), draw(1, 5), new_a, 0.6)
    same(a, new_a, "the next booster begins with new_a")
    b = b.clone().requires_grad_()
    (grad_y * (x @ W.T + 0.6 * (x @ a.T) @ b.T)).sum().backward()
    different(b.grad, torch.zeros(6, 1, dtype=b.dtype), "b must have a gradient after a merge")


def test_the_layers_of_a_round_are_different_and_always_the_same(ex):
    for round, count in product(range(10), (1, 2, 5)):
        names = list(NAMES)
        chosen = ex.chosen_layers(names, count, round)
        holds(names == NAMES, "the list of names must stay as it is")
        holds(len(chosen) == count and len(set(chosen)) == count and set(chosen) <= set(NAMES),
              f"{count} different ones of {len(NAMES)} names are wanted, not {chosen}")
        again = ex.chosen_layers(names, count, round)
        holds(set(again) == set(chosen), f"round {round} has other layers when asked for again")


def test_every_choice_of_layers_comes_equally_often(ex):
    rounds = 2000
    found = Counter(frozenset(ex.chosen_layers(NAMES, 2, round)) for round in range(rounds))
    share = 1 / 10  # of one of the pairs of 5 names
    off = 6 * (rounds * share * (1 - share)) ** 0.5  # by chance, once in 10⁸
    for pair in map(frozenset, combinations(NAMES, 2)):
        holds(abs(found[pair] - rounds * share) < off,
              f"in {rounds} rounds, {' and '.join(sorted(pair))} are chosen {found[pair]} times in "
              f"place of about {rounds * share:.0f}")
