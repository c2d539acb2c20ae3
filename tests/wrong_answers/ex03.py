"""Wrong answers to exercise 3, and right ones in another style, laid over the solution."""

# wrong: the ratio is A's
def learning_rates(names, lr, ratio):
    return {name: ratio * lr if name.split(".")[-1] == "lora_A" else lr for name in names}

# wrong: what merely contains the name has B's rate
def learning_rates(names, lr, ratio):
    return {name: ratio * lr if "lora_B" in name else lr for name in names}

# wrong: what merely ends so has B's rate
def learning_rates(names, lr, ratio):
    return {name: ratio * lr if name.endswith("lora_B") else lr for name in names}

# wrong: all but A has B's rate
def learning_rates(names, lr, ratio):
    return {name: ratio * lr if name.split(".")[-1] != "lora_A" else lr for name in names}

# wrong: the part from A has the new B
def update_parts(x, A, B, dA, dB, alpha):
    s = alpha / A.shape[1]
    from_A = s * (x @ dA) @ (B + dB)
    from_B = s * (x @ A) @ dB
    both = s * (x @ dA) @ dB
    return from_A, from_B, both

# wrong: the part from both is forgotten
def update_parts(x, A, B, dA, dB, alpha):
    s = alpha / A.shape[1]
    from_A = s * (x @ dA) @ B
    from_B = s * (x @ A) @ dB
    both = 0 * from_A
    return from_A, from_B, both

# wrong: the scale is applied twice where both moved
def update_parts(x, A, B, dA, dB, alpha):
    s = alpha / A.shape[1]
    from_A = s * (x @ dA) @ B
    from_B = s * (x @ A) @ dB
    both = s * s * (x @ dA) @ dB
    return from_A, from_B, both

# wrong: A's rate falls with the root of the width
def rates_for_width(lr_A, lr_B, width, new_width):
    return lr_A * (width / new_width) ** 0.5, lr_B

# wrong: A's rate grows with the width
def rates_for_width(lr_A, lr_B, width, new_width):
    return lr_A * new_width / width, lr_B

# wrong: B's rate falls too
def rates_for_width(lr_A, lr_B, width, new_width):
    return lr_A * width / new_width, lr_B * width / new_width

# wrong: A's rate stays
def rates_for_width(lr_A, lr_B, width, new_width):
    return lr_A, lr_B

# wrong: the widths are divided as whole numbers
def rates_for_width(lr_A, lr_B, width, new_width):
    if new_width > width:
        return lr_A / (new_width // width), lr_B
    return lr_A * (width // new_width), lr_B

# right: another style
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
