"""Grades ex03_lora_plus.py (for the lab, not for marks: lora.py has the idea)."""
import pytest
import torch

from exercises.tests.checks import holds, number, same, several, tensor

RANK, DRAWS = 16, 16


@pytest.fixture
def step(draw):
    return draw(7, 5), draw(5, 3), draw(3, 6), draw(5, 3), draw(3, 6), 4.5


def rates(ex, *arguments):
    found = several(ex.rates_for_width(*arguments), 2, "rates_for_width")
    return [number(each, "a rate") for each in found]


@pytest.mark.points(2)
def test_b_has_its_own_rate_and_all_others_the_plain_one(ex):
    plain = ["h.0.attn.lora_A", "ln.weight", "h.1.lora_A", "lora_A", "B.weight", "norm_of_lora_B",
             "lora_B.bias", "h.2.lora_Bias"]
    factors = ["h.0.attn.lora_B", "h.1.lora_B", "lora_B"]
    names = [*plain[:3], *factors, *plain[3:]]
    for lr, ratio in ((0.01, 8.0), (0.3, 0.5), (0.2, 1.0)):
        found = ex.learning_rates(list(names), lr, ratio)
        holds(isinstance(found, dict) and set(found) == set(names),
              "learning_rates must be a dict with a rate for each name")
        for name in names:
            wanted = ratio * lr if name in factors else lr
            same(number(found[name], "a rate"), wanted,
                 f"with lr {lr} and ratio {ratio}, the rate of {name}")


@pytest.mark.points(2)
def test_the_parts_are_those_of_the_change(ex, step):
    x, A, B, dA, dB, alpha = step
    parts = several(ex.update_parts(*step), 3, "update_parts")
    from_A, from_B, both = [tensor(part, (7, 6), "a part") for part in parts]

    def output(A, B):
        return alpha / 3 * x @ (A @ B)

    before = output(A, B)
    same(from_A + from_B + both, output(A + dA, B + dB) - before,
         "the three parts must add up to the whole change of s x A B")
    same(from_A, output(A + dA, B) - before, "the part from A is the change when A alone moves")
    same(from_B, output(A, B + dB) - before, "the part from B is the change when B alone moves")


def test_rates_at_the_same_width_stay_and_there_and_back_again(ex):
    before = 0.003, 0.07
    for name, found, wanted in zip(("η_A", "η_B"), rates(ex, *before, 96, 96), before):
        same(found, wanted, f"from width 96 to 96, {name} stays")
    for width, other in ((64, 640), (96, 160), (160, 96), (100, 7)):
        there = [each.item() for each in rates(ex, *before, width, other)]
        for name, found, wanted in zip(("η_A", "η_B"), rates(ex, *there, other, width), before):
            same(found, wanted, f"from width {width} to {other} and back, {name} is as before")
        same(there[0] * other, before[0] * width,
             f"from width {width} to {other}, η_A times the width must stay")


def sizes(draw, width, lr_A, lr_B):
    """Mean sizes of the parts from A and from B, in the second step of sign descent from B = 0.

    Each entry moves by its rate, as with Adam; only from the second step on has A a gradient.
    """
    found = torch.zeros(2, dtype=torch.float64)
    for _ in range(DRAWS):
        x, y, A = draw(1, width), draw(1, width), draw(width, RANK) / width ** 0.5
        B = torch.zeros(RANK, width, dtype=A.dtype)
        for _ in range(2):
            error = x @ A @ B - y
            dA = -lr_A * (x.T @ (error @ B.T)).sign()
            dB = -lr_B * ((x @ A).T @ error).sign()
            parts = torch.stack((x @ dA @ B, x @ A @ dB))
            A, B = A + dA, B + dB
        found += parts.abs().mean(dim=(1, 2)) / DRAWS
    return found


@pytest.mark.points(3)
def test_both_parts_keep_their_size_as_the_width_grows(ex, draw):
    base, lr_A, lr_B = 256, 0.5 / 256, 0.01
    here = sizes(draw, base, lr_A, lr_B)
    for width in (64, 640, 4096):
        there = sizes(draw, width, *rates(ex, lr_A, lr_B, base, width))
        for name, growth in zip("AB", (there / here).tolist()):
            holds(1 / 1.5 < growth < 1.5,
                  f"from width {base} to {width}, the part from {name} must keep its size, within "
                  f"chance; it becomes {growth:.2g} times as large")
