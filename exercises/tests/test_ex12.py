"""Grades ex12_hetero_lora.py."""
from itertools import combinations

import pytest
import torch

from exercises.tests.checks import holds, number, same


def letters(count):
    return [f"h.{i // 4}.{'dacb'[i % 4]}" for i in range(count)]


@pytest.fixture
def layer(draw):
    """A weight, and a loss of it as it stands in a small network."""
    x, last, y = draw(9, 5), draw(3, 6), draw(9, 3)
    return draw(6, 5), lambda W: (torch.tanh(x @ W.T) @ last.T - y).square().mean()


def gradients(loss, *leaves):
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    return torch.autograd.grad(loss(*leaves), leaves)


def checked(ex, scores, costs, budget):
    """What is enabled, as a set; it must be within the budget."""
    enabled = ex.allocate(dict(scores), dict(costs), budget)
    holds(isinstance(enabled, list), f"a list of names is wanted, not {enabled}")
    holds(set(enabled) <= set(scores), f"{enabled} must be some of {sorted(scores)}")
    holds(len(set(enabled)) == len(enabled), f"no name must come twice: {enabled}")
    spent = sum(costs[name] for name in enabled)
    holds(spent <= budget, f"{spent} parameters are spent of a budget of {budget}")
    return set(enabled)


@pytest.mark.points(2)
def test_the_gradient_score_is_the_steepest_slope(ex, layer):
    W, loss = layer
    [G] = gradients(loss, W)
    score = number(ex.gradient_score(G), "the score")
    along = G / torch.linalg.matrix_norm(G)
    [slope] = gradients(lambda step: loss(W + step * along), torch.zeros((), dtype=W.dtype))
    same(score, slope, "the score must be the slope of the loss along a step of length 1 on G")


@pytest.mark.points(2)
def test_the_snip_score_is_the_slope_along_each_entry_of_w(ex, layer):
    W, loss = layer
    [G] = gradients(loss, W)
    score = number(ex.snip_score(W, G), "the score")
    [by_entry] = gradients(lambda factor: loss(factor * W), torch.ones_like(W))
    same(score, by_entry.abs().sum(), "the score must be the sum over W's entries of how fast the "
                                      "loss changes when that entry is multiplied by a factor")


@pytest.mark.points(2)
def test_with_equal_costs_no_other_choice_is_better(ex, draw):
    names = letters(7)
    for budget in (0, 99, 100, 350, 499, 700, 10_000):
        scores = {name: score.item() for name, score in zip(names, draw(7).abs())}
        enabled = checked(ex, scores, dict.fromkeys(names, 100), budget)
        count = min(budget // 100, 7)
        holds(len(enabled) == count, f"a budget of {budget} is enough for {count} of 7 layers of "
                                     f"100 parameters, not {len(enabled)}")
        total = sum(scores[name] for name in enabled)
        best = max(sum(scores[name] for name in some) for some in combinations(names, count))
        holds(total > best - 1e-10, f"the scores of {count} enabled layers add up to {total:.6g}, "
                                    f"and {best:.6g} is possible")


@pytest.mark.points(2)
def test_with_other_costs_each_is_disabled_only_for_better_ones(ex, draw):
    names = letters(8)
    for share in (*torch.sigmoid(draw(60)).tolist(), 1.0):
        scores = {name: score.item() for name, score in zip(names, draw(8).abs())}
        costs = {name: int(100 + 300 * cost) for name, cost in zip(names, draw(8).abs())}
        budget = int(share * sum(costs.values()))
        enabled = checked(ex, scores, costs, budget)
        for name in set(names) - enabled:
            better = sum(costs[other] for other in enabled if scores[other] > scores[name])
            holds(better + costs[name] > budget,
                  f"a layer of {costs[name]} parameters is disabled, while the enabled ones with "
                  f"higher scores take {better} of a budget of {budget}")


def test_equals_go_by_name(ex):
    names, costs = ["b", "ab", "a.10", "a.2", "c", "abc"], [10, 12, 14, 11, 10, 13]
    costs = dict(zip(names, costs))
    for score in (2.0, 0.0):  # what the equal ones have; "c" has more
        scores = dict.fromkeys(names, score) | {"c": 5.0}
        for order in (names, names[::-1]):
            enabled = checked(ex, {name: scores[name] for name in order}, costs, 35)
            # c leaves 25: a.10 (14) and then a.2 (11) fit exactly
            holds(enabled == {"a.10", "a.2", "c"}, f"of layers with equal scores, {score:g}, a.10 "
                  f"and a.2 come first in the alphabet; your list has {sorted(enabled)}")
    names = ["h.2.a", "h.10.b", "h.1.z"]
    enabled = checked(ex, dict.fromkeys(names, 1.0), dict.fromkeys(names, 10), 20)
    holds(enabled == {"h.1.z", "h.10.b"}, "of layers with equal scores, h.1.z and h.10.b come "
          f"before h.2.a in the alphabet; your list has {sorted(enabled)}")


@pytest.mark.points(2)
def test_scores_count_by_their_order_alone(ex, draw):
    names = letters(8)
    scores = {name: score.item() for name, score in zip(names, draw(8).abs())}
    costs = {name: int(100 + 300 * cost) for name, cost in zip(names, draw(8).abs())}
    budget = sum(costs.values()) // 2
    enabled = checked(ex, scores, costs, budget)
    for factor in (1e-6, 3.7, 1e6):
        scaled = {name: factor * score for name, score in scores.items()}
        holds(checked(ex, scaled, costs, budget) == enabled,
              f"{factor:g} times all scores must enable the same layers")
    for name in names:
        up = name in enabled
        moved = scores | {name: scores[name] * (4 if up else 0.25)}
        holds((name in checked(ex, moved, costs, budget)) == up,
              "an enabled layer must stay enabled when its score rises, and a disabled one "
              "disabled when its score falls")
