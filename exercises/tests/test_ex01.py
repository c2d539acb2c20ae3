"""Grades ex01_forward.py (for the lab, not for marks: lora.py has the idea)."""
import pytest
import torch

from exercises.tests.checks import different, same, several, tensor


@pytest.fixture
def layer(draw):
    x, W, A, B = draw(7, 5), draw(5, 6), draw(5, 3), draw(3, 6)
    return x, W, A, B, 4.5


@pytest.mark.points(2)
def test_forward_is_the_product_with_one_dense_weight(ex, layer):
    x, W, A, B, alpha = layer
    y = tensor(ex.forward(x, W, A, B, alpha), (7, 6), "y")
    dense = W + alpha / 3 * A @ B
    same(y, x @ dense, "forward must equal x (W + s AB) with s = alpha / r")


def test_forward_starts_from_the_base(ex, layer):
    x, W, A, B, alpha = layer
    same(ex.forward(x, W, A, torch.zeros_like(B), alpha), x @ W, "with B = 0 the layer is x W")


def test_forward_doubles_its_low_rank_part_with_alpha_but_not_with_the_rank(ex, layer, draw):
    x, W, A, B, alpha = layer
    part = ex.forward(x, W, A, B, alpha) - x @ W
    same(ex.forward(x, W, A, B, 2 * alpha) - x @ W, 2 * part, "twice alpha, twice the change")
    A2, B2 = torch.cat((A, A), dim=1), torch.cat((B, B))
    same(ex.forward(x, W, A2, B2, alpha) - x @ W, part,
         "twice the rank with the same factors repeated: s halves, and the change stays")


@pytest.mark.points(3)
def test_gradients_are_those_of_the_dense_formula(ex, layer, draw):
    x, W, A, B, alpha = layer
    grad_y = draw(7, 6)
    leaves = [each.clone().requires_grad_() for each in (x, A, B)]
    (leaves[0] @ (W + alpha / 3 * leaves[1] @ leaves[2]) * grad_y).sum().backward()
    ex.forward(draw(7, 5), W, draw(5, 3), draw(3, 6), 1.5)  # gradients may keep nothing of it
    found = several(ex.gradients(x, W, A, B, alpha, grad_y), 3, "gradients")
    for name, mine, leaf in zip("xAB", found, leaves):
        tensor(mine, leaf.shape, f"∂L/∂{name}")
        same(mine, leaf.grad, f"∂L/∂{name} must be what autograd finds through W + s AB")


def test_gradients_at_the_start(ex, layer, draw):
    x, W, A, B, alpha = layer
    found = ex.gradients(x, W, A, torch.zeros_like(B), alpha, draw(7, 6))
    _, grad_A, grad_B = several(found, 3, "gradients")
    same(grad_A, torch.zeros_like(A), "∂L/∂A where B = 0")
    different(tensor(grad_B, B.shape, "∂L/∂B"), torch.zeros_like(B),
              "with B = 0, ∂L/∂B must not be zero: its formula has no B")
