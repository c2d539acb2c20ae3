"""Grades ex08_chain_of_lora.py."""
import pytest
import torch

from exercises.checks import holds, same, tensor, untouched

M, N, R, S = 9, 10, 2, 1.7


@pytest.fixture
def layer(draw):
    return draw(M, N), draw(R, N), draw(M, R)  # W0, A, B


def restarted(ex, W0, A, B):
    """What `restart` gives, looked at."""
    found = untouched((W0, A, B), lambda: ex.restart(W0, A, B, S))
    holds(isinstance(found, (tuple, list)) and len(found) == 3, "restart must give W0, A and B")
    return [tensor(value, like.shape, name)
            for value, like, name in zip(found, (W0, A, B), ("W0", "A", "B"))]


def rank(matrix):
    return torch.linalg.matrix_rank(matrix).item()


@pytest.mark.points(2)
def test_a_restart_does_not_move_the_layer(ex, layer, draw):
    W0, A, B = layer
    new_W0, new_A, new_B = restarted(ex, W0, A, B)
    x = draw(6, N)
    before, after = x @ (W0 + S * B @ A).T, x @ (new_W0 + S * new_B @ new_A).T
    same(after, before, "what the layer computes must be the same before and after a restart")
    holds(not new_B.any(), f"B must be zero after a restart: its norm is {new_B.norm():.2g}")
    same(new_W0, W0 + S * B @ A, "the new W0 must be the layer's weight before the restart")


def test_a_restart_takes_a_new_a(ex, layer):
    W0, A, B = layer
    first, second = restarted(ex, W0, A, B)[1], restarted(ex, W0, A, B)[1]
    holds(rank(torch.cat((A, first))) == 2 * R, "the new A must be random: its rows and the old "
                                                f"ones' span {rank(torch.cat((A, first)))} "
                                                f"dimensions, and not {2 * R}")
    holds(rank(torch.cat((first, second))) == 2 * R, "two restarts must not draw the same A")
    largest, most = first.abs().max().item(), N ** -0.5
    holds(0 < largest <= most * 1.001, f"A's entries must be within ±{most:.3g}: the largest is "
                                       f"{largest:.3g}")
    many = torch.cat([restarted(ex, W0, A, B)[1] for _ in range(20)])
    holds(many.abs().max().item() > 0.8 * most, f"A's entries must fill ±{most:.3g}: of "
          f"{many.numel()} the largest is {many.abs().max().item():.3g}")
    negative = (many < 0).double().mean().item()
    holds(0.2 < negative < 0.8, f"half of A's entries must be negative, more or less: of "
                                f"{many.numel()} it is {negative:.0%}")


@pytest.mark.points(2)
def test_a_chain_reaches_the_sum_of_its_ranks_and_no_more(ex, layer, draw):
    W0, A, B = layer
    W = W0
    for count in range(1, 5):
        _, A, B = W, A + draw(R, N), B + draw(M, R)  # as if trained
        before = W + S * B @ A
        W, A, B = restarted(ex, W, A, B)
        same(W + S * B @ A, before, f"restart {count} must not move the layer")
        found = rank(W + S * B @ A - W0)
        holds(found == count * R, f"after {count} links of rank {R}, ΔW must have the rank "
                                  f"{count * R}: it has {found}")


@pytest.mark.points(2)
def test_the_factors_have_no_state_left_and_others_keep_theirs(ex, draw):
    def moments(*shape):
        return {"exp_avg": draw(*shape), "exp_avg_sq": draw(*shape).square(),
                "step": torch.tensor(200.0)}

    state = {"h.0.lora_A": moments(2, 5), "h.0.lora_B": moments(4, 2), "ln.weight": moments(4),
             "head.weight": moments(3, 4)}
    copies = {name: {key: value.clone() for key, value in of.items()} for name, of in state.items()}
    gone = ["h.0.lora_A", "h.0.lora_B", "h.1.lora_A"]  # the last has no state yet
    left = ex.restarted_state(state, gone)
    holds(isinstance(left, dict), "restarted_state must give a dict")
    holds(sorted(left) == ["head.weight", "ln.weight"],
          f"without {gone}, of {sorted(copies)} there must be ln.weight and head.weight left, not "
          f"{sorted(left)}")
    for where, found in (("the new dict", left), ("the old dict", state)):
        for name in found:
            whole = found[name].keys() == copies[name].keys()
            holds(whole and all(torch.equal(found[name][key], copies[name][key])
                                for key in copies[name]),
                  f"{where} must have the state of {name} as it was, its step included")
    holds(state.keys() == copies.keys(), "the old dict must stay as it is")


@pytest.mark.points(2)
def test_a_chain_is_one_adapter_of_the_summed_rank(ex, draw):
    ranks = (2, 1, 3)
    links = [(draw(r, N), draw(M, r)) for r in ranks]
    A, B = untouched([each for link in links for each in link], lambda: ex.as_one(links))
    tensor(A, (sum(ranks), N), "A of the chain"), tensor(B, (M, sum(ranks)), "B of the chain")
    expected = sum(torch.einsum("mr,rn->mn", B_i, A_i) for A_i, B_i in links)
    same(B @ A, expected, "BA must be the sum of the links' products")
