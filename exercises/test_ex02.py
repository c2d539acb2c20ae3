"""Grades ex02_merge.py (for the lab, not for marks: lora.py has the idea)."""
import pytest
import torch

from exercises.checks import different, holds, same, tensor, untouched


@pytest.fixture
def layer(draw):
    return {"W": draw(5, 6), "A": draw(5, 3), "B": draw(3, 6), "alpha": 4.5}


@pytest.fixture
def unfavourable(draw):
    """In float32, with an adapter much larger than W: the sum has no room for W's last digits."""
    W, A, B = 1e-3 * draw(5, 6), draw(5, 3), draw(3, 6)
    return {"W": W.float(), "A": A.float(), "B": B.float(), "alpha": 300.0}


def call(function, layer):
    """-> the dict that the function makes of a layer, which must stay as it is."""
    before = dict(layer)
    tensors = [layer[name] for name in "WAB"]
    result = untouched(tensors, lambda: function(layer), "W, A and B of the dict that comes in "
                       "must stay as they are: `+=` changes a tensor in place")
    holds(layer.keys() == before.keys() and all(layer[key] is before[key] for key in before),
          "the dict that comes in must stay as it is: the result is a new one")
    holds(isinstance(result, dict) and result.keys() >= before.keys() & {"W", "A", "B", "alpha"},
          "the result is to be a dict with W, A, B and alpha")
    tensor(result["W"], before["W"].shape, "W")
    for name in "AB":
        holds(torch.equal(result[name], before[name]), f"{name} must stay as it is")
    return result


def bitwise(found, W, property):
    apart = int((found != W).sum())
    holds(found.dtype == W.dtype, f"{property}: its type is {found.dtype} in place of {W.dtype}")
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
def test_unmerge_gives_the_weight_back_bit_for_bit(ex, unfavourable):
    W, A, B, alpha = unfavourable.values()
    change = alpha / 3 * A @ B
    different((W + change) - change, W, "the numbers are meant to be unfavourable")
    unmerged = call(ex.unmerge, call(ex.merge, unfavourable))
    bitwise(unmerged["W"], W, "merged and unmerged, W must be the old one bit for bit")


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
    again = call(ex.merge, {**unmerged, "W": W, "A": A, "B": B})
    same(again["W"], W + 1.5 * A @ B, "merged after more training, W must hold the new numbers")
    bitwise(call(ex.unmerge, again)["W"], W, "unmerged after that, W must be the newer one")


@pytest.mark.points(2)
def test_a_merged_head_gives_the_adapted_logits(ex, draw):
    embedding, A, B, h = draw(9, 4), draw(4, 2), draw(2, 9), draw(5, 4)
    head = tensor(ex.merged_head(embedding, A, B, 3.0), (4, 9), "the merged head")
    same(h @ head, h @ embedding.T + 1.5 * (h @ A) @ B,
         "the merged head must give the logits h Eᵀ + s (h A) B")


@pytest.mark.points(2)
def test_a_merged_head_leaves_the_embedding_alone(ex, draw):
    embedding, A, B = draw(9, 4), draw(4, 2), draw(2, 9)
    for B in (B, torch.zeros_like(B)):  # zero: a shortcut must not hand out the embedding itself
        head = untouched((embedding, A, B), lambda: ex.merged_head(embedding, A, B, 3.0),
                         "merging the head must not change the embedding, A or B")
        tensor(head, (4, 9), "the merged head")
        untouched((embedding,), lambda: head.add_(1.0),
                  "a later change of the head must not reach the embedding: they share memory")
