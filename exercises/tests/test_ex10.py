"""Grades ex10_xgblora.py."""
from collections import Counter
from itertools import combinations, product

import pytest
import torch

from exercises.tests.checks import different, holds, same, several, tensor

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
        E = draw(m, n)
        b, a = several(ex.booster(E), 2, "booster")
        tensor(b, (m, 1), "b"), tensor(a, (1, n), "a")
        least = torch.linalg.svdvals(E)[1:].norm().item()
        here = (E - b @ a).norm().item()
        holds(here <= least + 1e-10, f"‖E − b a‖ is {here:.12g}, and {least:.12g} is possible")
        b, a = several(ex.booster(torch.zeros_like(E)), 2, "booster")
        tensor(b, (m, 1), "b for E = 0"), tensor(a, (1, n), "a for E = 0")
        same(b @ a, torch.zeros_like(E), "for E = 0, b a must be 0")


@pytest.mark.points(2)
def test_whole_boosters_add_up_to_the_truncated_svd(ex, draw):
    E = draw(7, 5)
    boosters = several(ex.boost(E, 5, 1.0), 5, "boost for 5 rounds")
    for rounds, total in enumerate(sums(boosters, 1.0, E.shape)):
        same(total, truncated(E, rounds), f"with rate 1, the sum after {rounds} rounds must be E's "
                                          "best approximation of that rank", tolerance=1e-8)


@pytest.mark.points(2)
def test_shrunken_boosters_leave_the_residual_that_theory_says(ex, draw):
    E, rate = draw(7, 5), 0.2 + 0.6 * torch.sigmoid(draw(1)).item()
    left = torch.linalg.svdvals(E)
    before = float("inf")
    boosters = several(ex.boost(E, 8, rate), 8, "boost for 8 rounds")
    for rounds, total in enumerate(sums(boosters, rate, E.shape)):
        here = (E - total).norm()
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
        W, b, a = several(ex.merge(W, b, a, new_a, rate), 3, "merge")
        tensor(W, (6, 5), "W"), tensor(b, (6, 1), "b"), tensor(a, (1, 5), "a")
        same(x @ W.T + rate * (x @ a.T) @ b.T, y, "the layer must compute the same after a merge")
        same(W, W0 + added, f"after {rounds} rounds all {rounds} boosters must be in W")


def test_the_next_booster_can_learn(ex, draw):
    x, grad_y, new_a = draw(9, 5), draw(9, 6), draw(1, 5)
    W, b, a = several(ex.merge(draw(6, 5), draw(6, 1), draw(1, 5), new_a, 0.6), 3, "merge")
    same(a, new_a, "the next booster begins with new_a")
    b = b.clone().requires_grad_()
    (grad_y * (x @ W.T + 0.6 * (x @ a.T) @ b.T)).sum().backward()
    different(b.grad, torch.zeros(6, 1, dtype=b.dtype), "b must have a gradient after a merge")


def test_the_layers_of_a_round_are_different_and_always_the_same(ex):
    before = {}
    for round, count in product(range(10), (1, 2, 5)):
        chosen = ex.chosen_layers(list(NAMES), count, round)
        holds(isinstance(chosen, list), f"a list of names is wanted, not {chosen}")
        holds(len(chosen) == count and len(set(chosen)) == count and set(chosen) <= set(NAMES),
              f"{count} different ones of {len(NAMES)} names are wanted, not {chosen}")
        holds(not ex.drew, "chosen_layers seeds or uses random numbers that everybody shares: make "
                           "a generator of its own")
        before[round, count] = set(chosen)
    ex.reload()
    for (round, count), chosen in reversed(before.items()):
        holds(set(ex.chosen_layers(list(NAMES), count, round)) == chosen,
              f"round {round} has other layers when asked for again, in another run")


def test_every_choice_of_layers_comes_equally_often(ex):
    rounds = 2000
    chosen = [frozenset(ex.chosen_layers(list(NAMES), 2, round)) for round in range(rounds)]
    found = Counter(chosen)
    chance = 1 / 10  # of one of the pairs of 5 names
    off = 6 * (rounds * chance * (1 - chance)) ** 0.5  # by chance, once in 10⁸
    for pair in map(frozenset, combinations(NAMES, 2)):
        holds(abs(found[pair] - rounds * chance) < off,
              f"in {rounds} rounds, {' and '.join(sorted(pair))} are chosen {found[pair]} times in "
              f"place of about {rounds * chance:.0f}")
    repeated = sum(first == second for first, second in zip(chosen, chosen[1:]))
    holds(abs(repeated - rounds * chance) < off, f"of {rounds} rounds {repeated} have the layers of "
          f"the round before, in place of about {rounds * chance:.0f}")
