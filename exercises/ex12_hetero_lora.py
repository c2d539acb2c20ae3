"""12. HeteroLoRA (Zhang et al., arXiv 2406.14956): the budget to the layers that need it.

LoRA gives every layer the same rank, whether the layer matters or not. HeteroLoRA scores the layers
first, with proxies that cost next to nothing, a few gradients of the model before fine-tuning, and
then enables LoRA, of a larger rank, in the best ones only, within the same number of parameters.
With W (m, n) the weight of a layer and G = ∂L/∂W (m, n), two of its proxies are

    gradient norm    ‖G‖_F
    SNIP             Σ |W ⊙ G|      ⊙ multiplies entry by entry, Σ sums all entries

The first says how steep the loss is. The second, from the pruning of networks, says how much the
loss would change, to first order, if an entry of W were struck out, summed over the entries.

Simplifications: two proxies; one allocation, at the start, where the paper can allocate again in
training; and the score is that of the dense W. LoRA's own factors say little at the start: with
B = 0, ∇A = s BᵀG and B ⊙ ∇B are zero in every layer, and ∇B = s GAᵀ sees G through a random A.

To think about: both proxies sum over a layer's entries. Is that fair to small layers? And which
proxy changes if a layer's W doubles, while the layer before it halves its output?
"""
import torch

import lora
from data import tasks, tokenizer


def gradient_score(G):
    """G (m, n) -> a number, the norm of all its entries.

    Hint: the steepest descent of the loss, for a step of length 1 in W.
    """
    raise NotImplementedError


def snip_score(W, G):
    """W, G (m, n) -> a number, what all entries of W together are worth.

    Hint: one entry may raise the loss and another lower it; both are worth something.
    """
    raise NotImplementedError


def allocate(scores, costs, budget):
    """Two dicts by name, a layer's score and its parameters -> a list of the names to enable.

    Layers are tried in the order of their scores, the highest first, whatever they cost. Layers of
    equal score, 0 too, are tried in alphabetical order of their names. A layer that does not fit
    into what is left of the budget is passed over; a cheaper one after it may still fit. The list
    is in any order. Where all costs are equal, no other choice has a higher sum of scores; where
    they differ, this is greedy, and need not be the best.
    Hint: sorted takes a key, and a key can be a tuple.
    """
    raise NotImplementedError


# How it trains: LoRA of twice the rank, in the layers that `allocate` enables; the budget is what
# rank r in all layers would cost. The others keep B = 0 and are frozen.

PROXIES = {"gradient": lambda W, G: gradient_score(G), "snip": lambda W, G: snip_score(W, G)}
PROXY = "snip"
BATCHES = 4


def dense_gradients(model, layers):
    """G of the layers' dense weights, on the first batches of `math` -> {name: (m, n)}."""
    task = tasks.load("math", tokenizer.load(), 128)
    weights = [layer.linear.weight.requires_grad_() for layer in layers.values()]
    loss = sum(model(*task.batch(0, step, 32))[1] for step in range(BATCHES))
    gradients = torch.autograd.grad(loss, weights)
    for W in weights:
        W.requires_grad_(False)
    return dict(zip(layers, gradients))


def adapt(model, rank):
    lora.apply_lora(model, 2 * rank)
    layers = lora.lora_layers(model)
    scores, costs = {}, {}
    for name, G in dense_gradients(model, layers).items():
        layer = layers[name]
        scores[name] = PROXIES[PROXY](layer.linear.weight.detach(), G)
        costs[name] = layer.lora_A.numel() + layer.lora_B.numel()
    enabled = allocate(scores, costs, sum(costs.values()) // 2)
    for name, layer in layers.items():
        layer.lora_A.requires_grad_(name in enabled)
        layer.lora_B.requires_grad_(name in enabled)
    print(f"enabled by their {PROXY} scores:", *sorted(enabled))
