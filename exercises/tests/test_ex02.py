"""Grades ex02_merge.py (for the lab, not for marks: lora.py has the idea)."""
import pytest
import torch

from exercises.tests.checks import different, holds, same, tensor


@pytest.fixture
def layer(draw):
    return {"W": draw(5, 6), "A": draw(5, 3), "B": draw(3, 6), "alpha": 4.5}


@pytest.fixture
def unfavourable(draw):
    """In float32, with an adapter much larger than W: the sum has no room for W's last digits."""
    W, A, B = 1e-3 * draw(5, 6), draw(5, 3), draw(3, 6)
    return {"W": W.float(), "A": A.float(), "B": B.float(), "alpha": 300.0}


def call(function, layer):
    """The dict that a function makes of a layer, if it has the form of a layer."""
    result = function(layer)
    holds(isinstance(result, dict) and result.keys() >= {"W", "A", "B", "alpha"},
          "the result must be a dict with W, A, B and alpha")
    tensor(result["W"], layer["W"].shape, "W", layer["W"].dtype)
    for name in "AB":
        holds(torch.equal(result[name], layer[name]), f"{name} must stay as it is")
    holds(result["alpha"] == layer["alpha"], "alpha must stay as it is")
    return result


def bitwise(found, W, property):
    apart = int((found != W).sum())
    holds(apart == 0, f"{property}: {apart} of {W.numel()} numbers differ, by up to "
                      f"{(found - W).abs().max().item():.2g}")


@pytest.mark.points(2)
def test_a_merged_layer_is_one_plain_product(ex, layer, draw):
    x = draw(7, 5)
    W, A, B, alpha = layer.values()
    merged = call(ex.merge, layer)
    same(x @ merged["W"], x @ W + alpha / 3 * (x @ A) @ B,
         "merged, x @ W alone must equal x W + s (x A) B with s = alpha / r")


@pytest.mark.points(2)
def test_unmerge_gives_the_weight_back_bit_for_bit(ex, unfavourable, draw):
    W, A, B, alpha = unfavourable.values()
    change = alpha / 3 * A @ B
    different((W + change) - change, W, "the numbers are meant to be unfavourable")
    other_W = draw(5, 6).float()
    merged = call(ex.merge, unfavourable)
    other = call(ex.merge, {**unfavourable, "W": other_W})
    bitwise(call(ex.unmerge, merged)["W"], W,
            "two layers are merged, then unmerged: the first's W must be the old one bit for bit")
    bitwise(call(ex.unmerge, other)["W"], other_W,
            "two layers are merged, then unmerged: the second's W must be the old one")


def test_what_is_done_twice_is_done_once(ex, unfavourable):
    W = unfavourable["W"]
    bitwise(call(ex.unmerge, unfavourable)["W"], W, "a layer that is not merged stays as it is")
    once = call(ex.merge, unfavourable)
    twice = call(ex.merge, once)
    bitwise(twice["W"], once["W"], "merged twice is merged once")
    back = call(ex.unmerge, twice)
    bitwise(back["W"], W, "merged twice and unmerged, W must be the old one")
    bitwise(call(ex.unmerge, back)["W"], W, "unmerged twice is unmerged once")


def test_an_unmerged_layer_trains_on_and_merges_again(ex, layer, draw):
    unmerged = call(ex.unmerge, call(ex.merge, layer))
    W, A, B = draw(5, 6), draw(5, 3), draw(3, 6)
    again = call(ex.merge, {**unmerged, "W": W, "A": A, "B": B, "alpha": 7.5})
    same(again["W"], W + 2.5 * A @ B, "merged after more training, W must hold the new numbers")
    bitwise(call(ex.unmerge, again)["W"], W, "unmerged after that, W must be the newer one")


@pytest.mark.points(2)
def test_a_merged_head_gives_the_adapted_logits(ex, draw):
    wte, A, B, h = draw(9, 4), draw(4, 2), draw(2, 9), draw(5, 4)
    head = tensor(ex.merged_head(wte, A, B, 3.0), (4, 9), "the merged head")
    same(h @ head, h @ wte.T + 1.5 * (h @ A) @ B,
         "the merged head must give the logits h wteᵀ + s (h A) B")


@pytest.mark.points(2)
def test_a_merged_head_leaves_the_embedding_alone(ex, draw):
    wte, A, B = draw(9, 4), draw(4, 2), draw(2, 9)
    for B in (B, torch.zeros_like(B)):  # with B = 0 a shortcut must not return wte itself
        tensor(ex.merged_head(wte, A, B, 3.0), (4, 9), "the merged head")
        holds(0 not in ex.shares, "the head shares memory with wte: a later change of the head "
                                  "would change the embedding")
