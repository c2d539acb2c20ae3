"""Answers to exercise 10 that the grader must tell from right ones, and one more right one."""
WRONG = {
    "the singular value is left out": ("S[0] * U[:, :1]", "U[:, :1]"),
    "the smallest direction is taken": (
        "return S[0] * U[:, :1], Vh[:1]", "return S[-1] * U[:, len(S) - 1:len(S)], Vh[-1:]"),
    "a booster is taken out whole, and added in part": (
        "residual = residual - rate * b @ a", "residual = residual - b @ a"),
    "the residual forgets the earlier rounds": (
        "residual = residual - rate * b @ a", "residual = R - rate * b @ a"),
    "the merged booster stays on top": ("torch.zeros_like(b), new_a", "b, new_a"),
    "the booster is merged whole": ("return W + rate * b @ a", "return W + b @ a"),
    "both factors start from zero": (
        "torch.zeros_like(b), new_a", "torch.zeros_like(b), torch.zeros_like(new_a)"),
    "a layer can be drawn twice": (".sample(names, count)", ".choices(names, k=count)"),
    "the layers take turns": (
        "random.Random(round).sample(names, count)",
        "[names[(round * count + i) % len(names)] for i in range(count)]"),
    "every call draws anew": ("random.Random(round)", "random.Random()"),
}

RIGHT = '''
import torch


def booster(R):
    values, vectors = torch.linalg.eigh(R.T @ R)
    a = vectors[:, -1:].T
    return R @ a.T, a


def boost(R, rounds, rate):
    if rounds == 0:
        return []
    b, a = booster(R)
    return [(b, a)] + boost(R - rate * b * a, rounds - 1, rate)


def merge(W, b, a, new_a, rate):
    return torch.addmm(W, b, a, alpha=rate), 0 * b, new_a.clone()


def chosen_layers(names, count, round):
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(round))
    return [names[i] for i in sorted(order[:count].tolist())]
'''
