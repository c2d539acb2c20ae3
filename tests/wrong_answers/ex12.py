"""Wrong answers to exercise 12, and right ones in another style, laid over the solution."""

# wrong: the norm is squared
def gradient_score(G):
    return G.square().sum().item()

# wrong: positive and negative gradients cancel
def gradient_score(G):
    return G.sum().abs().item()

# wrong: positive and negative entries cancel in SNIP
def snip_score(W, G):
    return (W * G).sum().abs().item()

# wrong: SNIP leaves out the weight
def snip_score(W, G):
    return G.abs().sum().item()

# wrong: the worst come first
def allocate(scores, costs, budget):
    enabled, left = [], budget
    for name in sorted(scores, key=lambda name: (scores[name], name)):
        if costs[name] <= left:
            enabled.append(name)
            left -= costs[name]
    return enabled

# wrong: equals come from the end of the alphabet
def allocate(scores, costs, budget):
    enabled, left = [], budget
    for name in sorted(scores, key=lambda name: (scores[name], name), reverse=True):
        if costs[name] <= left:
            enabled.append(name)
            left -= costs[name]
    return enabled

# wrong: equals come as the dict has them
def allocate(scores, costs, budget):
    enabled, left = [], budget
    for name in sorted(scores, key=lambda name: -scores[name]):
        if costs[name] <= left:
            enabled.append(name)
            left -= costs[name]
    return enabled

# wrong: the last one breaks the budget
def allocate(scores, costs, budget):
    enabled, left = [], budget
    for name in sorted(scores, key=lambda name: (-scores[name], name)):
        if left > 0:
            enabled.append(name)
            left -= costs[name]
    return enabled

# wrong: the first that does not fit ends it
def allocate(scores, costs, budget):
    enabled, left = [], budget
    for name in sorted(scores, key=lambda name: (-scores[name], name)):
        if costs[name] <= left:
            enabled.append(name)
            left -= costs[name]
        else:
            break
    return enabled

# wrong: the score is taken by parameter
def allocate(scores, costs, budget):
    enabled, left = [], budget
    for name in sorted(scores, key=lambda name: (-scores[name] / costs[name], name)):
        if costs[name] <= left:
            enabled.append(name)
            left -= costs[name]
    return enabled

# wrong: of equals the cheapest comes first
def allocate(scores, costs, budget):
    enabled = []
    for name in sorted(scores, key=lambda name: (-scores[name], costs[name], name)):
        if costs[name] <= budget:
            enabled.append(name)
            budget -= costs[name]
    return enabled

# wrong: of equals the shortest name comes first
def allocate(scores, costs, budget):
    enabled = []
    for name in sorted(scores, key=lambda name: (-scores[name], len(name), name)):
        if costs[name] <= budget:
            enabled.append(name)
            budget -= costs[name]
    return enabled

# wrong: layers of score 0 are left out
def allocate(scores, costs, budget):
    enabled = []
    for name in sorted(scores, key=lambda name: (-scores[name], name)):
        if scores[name] > 0 and costs[name] <= budget:
            enabled.append(name)
            budget -= costs[name]
    return enabled

# wrong: of equals the last word of the name decides
def allocate(scores, costs, budget):
    enabled = []
    for name in sorted(scores, key=lambda name: (-scores[name], name.split(".")[-1], name)):
        if costs[name] <= budget:
            enabled.append(name)
            budget -= costs[name]
    return enabled

# right: another style
import torch

def gradient_score(G):
    return torch.linalg.svdvals(G).norm()

def snip_score(W, G):
    return torch.dot(W.abs().flatten(), G.abs().flatten())

def allocate(scores, costs, budget):
    waiting, enabled = set(scores), set()
    while waiting:
        best = max(scores[name] for name in waiting)
        name = min(name for name in waiting if scores[name] == best)
        waiting.remove(name)
        if sum(costs[other] for other in enabled) + costs[name] <= budget:
            enabled.add(name)
    return list(enabled)
