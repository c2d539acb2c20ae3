"""Answers to exercise 6 that the grader must tell from right ones, and one more right one."""
WRONG = {
    "the skip connection is missing": (
        "return h + bottleneck @ W_up.T", "return bottleneck @ W_up.T"),
    "nothing bends": ("torch.nn.functional.gelu(h @ W_down.T + b_down)", "h @ W_down.T + b_down"),
    "GELU is approximated": (
        "gelu(h @ W_down.T + b_down)", 'gelu(h @ W_down.T + b_down, approximate="tanh")'),
    "the bias comes after the GELU": (
        "gelu(h @ W_down.T + b_down)", "gelu(h @ W_down.T) + b_down"),
    "the start is almost zero": ('"W_up": torch.zeros(d, m)', '"W_up": 1e-6 * torch.randn(d, m)'),
    "both weights start at zero": (
        '"W_down": torch.randn(m, d) / d ** 0.5', '"W_down": torch.zeros(m, d)'),
    "W_down's size is that of one width": (
        "torch.randn(m, d) / d ** 0.5", "0.05 * torch.randn(m, d)"),
    "the start is float64, which the model is not": (
        "torch.randn(m, d) / d ** 0.5", "torch.randn(m, d, dtype=torch.float64) / d ** 0.5"),
    "W_down has one sign": ("torch.randn(m, d) / d ** 0.5", "torch.randn(m, d).abs() / d ** 0.5"),
    "the biases are not counted": ("return 2 * d * m + d + m", "return 2 * d * m"),
}

RIGHT = '''
import math

import torch


def initial(d, m):
    start = {"W_down": torch.empty(m, d).uniform_(-1, 1) * math.sqrt(3 / d)}
    start["b_down"] = torch.zeros(m)
    start["W_up"] = torch.zeros(m, d).T
    start["b_up"] = torch.zeros(d)
    return start


def adapter(h, W_down, b_down, W_up, b_up):
    z = torch.einsum("...d,md->...m", h, W_down) + b_down
    return h + (torch.einsum("...m,dm->...d", z * torch.special.ndtr(z), W_up) + b_up)


def parameter_count(d, m):
    return m * (d + 1) + d * (m + 1)
'''
