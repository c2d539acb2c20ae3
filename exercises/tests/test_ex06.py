"""Grades ex06_serial_adapter.py."""
import pytest
import torch

from exercises.tests.checks import holds, same, tensor

D, M = 8, 3


@pytest.fixture
def weights(draw):
    return draw(M, D), draw(M), draw(D, M), draw(D)


def shapes(d, m):
    return {"W_down": (m, d), "b_down": (m,), "W_up": (d, m), "b_up": (d,)}


def start(ex, d, m):
    """The four tensors of `initial`, looked at, in the order in which `adapter` takes them."""
    found = ex.initial(d, m)
    holds(isinstance(found, dict) and sorted(found) == sorted(shapes(d, m)),
          "initial must give a dict of W_down, b_down, W_up and b_up")
    holds(not ex.overlaps, "each entry must have its own memory, and two of them share one")
    return [tensor(found[name], shape, name, torch.float32)
            for name, shape in shapes(d, m).items()]


@pytest.mark.points(3)
def test_the_adapter_is_its_formula(ex, weights, draw):
    W_down, b_down, W_up, b_up = weights
    h = draw(2, 5, D)
    y = tensor(ex.adapter(h, *weights), (2, 5, D), "f(h)")
    expected = h.clone()
    for i in range(2):
        for j in range(5):
            z = W_down @ h[i, j] + b_down
            expected[i, j] += W_up @ (z * (1 + torch.erf(z / 2 ** 0.5)) / 2) + b_up
    same(y, expected, "f(h) must be h + GELU(h W_downᵀ + b_down) W_upᵀ + b_up with the exact GELU, "
                      "z·Φ(z), at each position")
    same(ex.adapter(h[0, 0], *weights), expected[0, 0], "f of a single vector h (d,)")


@pytest.mark.points(2)
def test_the_start_changes_nothing_exactly(ex, draw):
    tensors = [each.double() for each in start(ex, D, M)]
    for name, value in zip(("b_down", "W_up", "b_up"), tensors[1:]):
        holds(not value.any(), f"at the start {name} must be exactly zero")
    h = draw(4, D)
    y = tensor(ex.adapter(h, *tensors), (4, D), "f(h)")
    holds(torch.equal(y, h), f"at the start f(h) must be h to the last bit: they are apart by "
                             f"{(y - h).norm().item():.2g}")


def test_the_start_can_learn(ex):
    for d, expected in ((400, 0.05), (25, 0.2)):
        W_down = start(ex, d, 50)[0].double()
        size = W_down.square().mean().sqrt().item()
        holds(0.4 < size / expected < 2, f"with d = {d}, W_down's entries must be about 1/√d = "
                                         f"{expected} in size; they are about {size:.2g}")
        negative = (W_down < 0).double().mean().item()
        holds(0.3 < negative < 0.7, "half of W_down's entries must be negative, more or less: it "
                                    f"is {negative:.0%}")
    W_down, again = start(ex, 20, 5)[0], start(ex, 20, 5)[0]
    rank = torch.linalg.matrix_rank(W_down.double()).item()
    holds(rank == 5, f"W_down (5, 20) must be random: its rank is {rank}, so the bottleneck's 5 "
                     f"entries cannot learn different things")
    holds(not torch.equal(W_down, again), "W_down must be new in every call: no two adapters alike")


def test_the_count(ex):
    for d, m in ((8, 3), (256, 8), (5, 5)):
        entries = sum(torch.zeros(shape).numel() for shape in shapes(d, m).values())
        found = ex.parameter_count(d, m)
        whole = isinstance(found, int) and found == entries
        holds(whole, f"d = {d}, m = {m}: parameter_count says {found}, but the four tensors do not "
                     "have so many entries")
