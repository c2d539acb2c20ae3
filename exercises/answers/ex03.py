"""Answers to exercise 3 that the grader must tell from right ones, and one more right one."""
WRONG = {
    "the ratio is A's": ('[-1] == "lora_B"', '[-1] == "lora_A"'),
    "what merely contains the name has B's rate": ('name.split(".")[-1] == "lora_B"',
                                                   '"lora_B" in name'),
    "what merely ends so has B's rate": ('name.split(".")[-1] == "lora_B"',
                                         'name.endswith("lora_B")'),
    "all but A has B's rate": ('[-1] == "lora_B"', '[-1] != "lora_A"'),
    "the part from A has the new B": (
        "from_A = s * (x @ dA) @ B", "from_A = s * (x @ dA) @ (B + dB)"),
    "the part from both is forgotten": ("both = s * (x @ dA) @ dB", "both = 0 * from_A"),
    "the scale is applied twice where both moved": ("both = s *", "both = s * s *"),
    "A's rate falls with the root of the width": (
        "lr_A * width / new_width", "lr_A * (width / new_width) ** 0.5"),
    "A's rate grows with the width": ("lr_A * width / new_width", "lr_A * new_width / width"),
    "B's rate falls too": ("new_width, lr_B", "new_width, lr_B * width / new_width"),
    "A's rate stays": ("lr_A * width / new_width", "lr_A"),
}

RIGHT = '''
import torch


def learning_rates(names, lr, ratio):
    rates = dict.fromkeys(names, lr)
    for name in rates:
        if f".{name}".endswith(".lora_B"):
            rates[name] = lr * ratio
    return rates


def update_parts(x, A, B, dA, dB, alpha):
    s = alpha / len(B)
    def f(A, B):
        return torch.einsum("ni,ir,ro->no", s * x, A, B)
    return f(dA, B), f(A + dA, dB) - f(dA, dB), f(dA, dB)


def rates_for_width(lr_A, lr_B, width, new_width):
    return [(width * lr_A) / new_width, lr_B]
'''
