"""Grades ex08_chain_of_lora.py."""
import copy

import pytest
import torch

from exercises.tests.checks import holds, same, several, tensor

M, N, R, S = 9, 10, 2, 1.7


@pytest.fixture
def layer(draw):
    return draw(M, N), draw(R, N), draw(M, R)  # W0, A, B


def restarted(ex, W0, A, B):
    """What `restart` returns, if it has the right form."""
    found = several(ex.restart(W0, A, B, S), 3, "restart")
    return [tensor(value, like.shape, name)
            for value, like, name in zip(found, (W0, A, B), ("W0", "A", "B"))]


def rank(matrix):
    return torch.linalg.matrix_rank(matrix).item()


def test_a_restart_does_not_move_the_layer(ex, layer, draw):
    W0, A, B = layer
    new_W0, new_A, new_B = restarted(ex, W0, A, B)
    x = draw(6, N)
    before, after = x @ (W0 + S * B @ A).T, x @ (new_W0 + S * new_B @ new_A).T
    same(after, before, "what the layer computes must be the same before and after a restart")
    holds(not new_B.any(), f"B must be zero after a restart: its norm is {new_B.norm():.2g}")
    same(new_W0, W0 + S * B @ A, "the new W0 must be the layer's weight before the restart")


def test_the_new_a_is_uniform_as_loras_is(ex, layer):
    W0, A, B = layer
    many = torch.cat([restarted(ex, W0, A, B)[1] for _ in range(40)])
    most, largest = N ** -0.5, many.abs().max().item()
    holds(0.8 * most < largest <= most * 1.001, f"A's entries must fill ±{most:.3g}: of "
                                                f"{many.numel()} the largest is {largest:.3g}")
    for low, high in ((-1, -0.5), (-0.5, 0), (0, 0.5), (0.5, 1)):
        part = ((many > low * most) & (many < high * most)).double().mean().item()
        holds(0.15 < part < 0.35, f"a quarter of A's entries must be between {low * most:.2g} and "
                                  f"{high * most:.2g}: of {many.numel()} it is {part:.0%}")


@pytest.mark.points(3)
def test_a_chain_reaches_the_sum_of_its_ranks_and_no_more(ex, layer, draw):
    W0, A, B = layer
    first, second = restarted(ex, W0, A, B)[1], restarted(ex, W0, A, B)[1]
    holds(rank(torch.cat((A, first))) == 2 * R, "the new A must have nothing of the old one: their "
          f"rows span {rank(torch.cat((A, first)))} dimensions, not {2 * R}")
    holds(rank(torch.cat((first, second))) == 2 * R, "two restarts must not draw the same A")
    W = W0
    for count in range(1, 5):
        B = B + draw(M, R)  # as if trained
        before = W + S * B @ A
        W, A, B = restarted(ex, W, A, B)
        same(W + S * B @ A, before, f"restart {count} must not move the layer")
        found = rank(W + S * B @ A - W0)
        holds(found == count * R, f"after {count} links of rank {R}, ΔW must have the rank "
                                  f"{count * R}: it has {found}")


def moments(draw, *shape):
    return {"exp_avg": draw(*shape), "exp_avg_sq": draw(*shape).square(),
            "step": torch.tensor(200.0)}


@pytest.mark.points(2)
def test_only_the_named_parameters_lose_their_state(ex, draw):
    gone = ["h.0.lora_A", "h.0.lora_B", "h.2.lora_A"]  # the last has no state yet
    kept = ["h.1.lora_A", "h.10.lora_B", "h.0.lora_A.bias", "0.lora_A", "ln.weight", "head.weight"]
    order = ["ln.weight", "h.0.lora_A", "h.1.lora_A", "h.0.lora_A.bias", "h.0.lora_B", "0.lora_A",
             "h.10.lora_B", "head.weight"]
    state = {name: moments(draw, 2, 5) for name in order}
    found = ex.restarted_state(copy.deepcopy(state), list(gone))
    holds(isinstance(found, dict), "restarted_state must return a dict")
    holds(set(found) == set(kept), f"without {gone}, what is left of {order} must be {kept}, not "
                                   f"{sorted(found)}")
    for name in kept:
        whole = found[name].keys() == state[name].keys()
        holds(whole and all(torch.equal(found[name][key], state[name][key]) for key in state[name]),
              f"the state of {name} must stay as it was, its step included")
    holds(set(ex.restarted_state(copy.deepcopy(state), [])) == set(order),
          "with no names, all state must stay")


@pytest.mark.points(2)
def test_a_chain_is_one_adapter_of_the_summed_rank(ex, draw):
    for ranks in ((2, 1, 3), (2, 2), (2,)):
        links = [(draw(r, N), draw(M, r)) for r in ranks]
        A, B = several(ex.as_one(links), 2, "as_one")
        tensor(A, (sum(ranks), N), "A of the chain"), tensor(B, (M, sum(ranks)), "B of the chain")
        expected = sum(torch.einsum("mr,rn->mn", B_i, A_i) for A_i, B_i in links)
        same(B @ A, expected, "BA must be the sum of the links' products")
