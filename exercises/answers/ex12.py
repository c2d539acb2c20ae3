"""Answers to exercise 12 that the grader must tell from right ones, and one more right one."""
WRONG = {
    "the norm is squared": ("G.square().sum().sqrt()", "G.square().sum()"),
    "positive and negative gradients cancel": ("G.square().sum().sqrt()", "G.sum().abs()"),
    "positive and negative entries cancel in SNIP": (
        "(W * G).abs().sum()", "(W * G).sum().abs()"),
    "SNIP leaves out the weight": ("(W * G).abs().sum()", "G.abs().sum()"),
    "the worst come first": ("(-scores[name], name)", "(scores[name], name)"),
    "equals come from the end of the alphabet": (
        "sorted(scores, key=lambda name: (-scores[name], name))",
        "sorted(scores, key=lambda name: (scores[name], name), reverse=True)"),
    "equals come as the dict has them": ("(-scores[name], name)", "-scores[name]"),
    "the last one breaks the budget": ("if costs[name] <= left:", "if left > 0:"),
    "the first that does not fit ends it": (
        "            left -= costs[name]\n", "            left -= costs[name]\n"
        "        else:\n            break\n"),
    "the score is taken by parameter": (
        "(-scores[name], name)", "(-scores[name] / costs[name], name)"),
}

RIGHT = '''
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
'''
