"""Wrong answers to exercise 6, and right ones in another style, laid over the solution."""

# wrong: the skip connection is missing
def adapter(h, W_down, b_down, W_up, b_up):
    bottleneck = torch.nn.functional.gelu(h @ W_down.T + b_down)
    return bottleneck @ W_up.T + b_up

# wrong: nothing bends
def adapter(h, W_down, b_down, W_up, b_up):
    bottleneck = h @ W_down.T + b_down
    return h + bottleneck @ W_up.T + b_up

# wrong: GELU is approximated
def adapter(h, W_down, b_down, W_up, b_up):
    bottleneck = torch.nn.functional.gelu(h @ W_down.T + b_down, approximate="tanh")
    return h + bottleneck @ W_up.T + b_up

# wrong: the bias comes after the GELU
def adapter(h, W_down, b_down, W_up, b_up):
    bottleneck = torch.nn.functional.gelu(h @ W_down.T) + b_down
    return h + bottleneck @ W_up.T + b_up

# wrong: the start is almost zero
def initial(d, m):
    return {"W_down": torch.randn(m, d) / d ** 0.5, "b_down": torch.zeros(m),
            "W_up": 1e-6 * torch.randn(d, m), "b_up": torch.zeros(d)}

# wrong: both weights start at zero
def initial(d, m):
    return {"W_down": torch.zeros(m, d), "b_down": torch.zeros(m),
            "W_up": torch.zeros(d, m), "b_up": torch.zeros(d)}

# wrong: W_down's size is that of one width
def initial(d, m):
    return {"W_down": 0.05 * torch.randn(m, d), "b_down": torch.zeros(m),
            "W_up": torch.zeros(d, m), "b_up": torch.zeros(d)}

# wrong: the start is float64, which the model is not
def initial(d, m):
    return {"W_down": torch.randn(m, d, dtype=torch.float64) / d ** 0.5, "b_down": torch.zeros(m),
            "W_up": torch.zeros(d, m), "b_up": torch.zeros(d)}

# wrong: W_down has one sign
def initial(d, m):
    return {"W_down": torch.randn(m, d).abs() / d ** 0.5, "b_down": torch.zeros(m),
            "W_up": torch.zeros(d, m), "b_up": torch.zeros(d)}

# wrong: the biases are not counted
def parameter_count(d, m):
    return 2 * d * m

# wrong: b_down is random
def initial(d, m):
    return {"W_down": torch.randn(m, d) / d ** 0.5, "b_down": torch.randn(m),
            "W_up": torch.zeros(d, m), "b_up": torch.zeros(d)}

# wrong: W_up's entries are one place in memory
def initial(d, m):
    return {"W_down": torch.randn(m, d) / d ** 0.5, "b_down": torch.zeros(m),
            "W_up": torch.zeros(1).expand(d, m), "b_up": torch.zeros(d)}

# wrong: b_down and W_up are one place in memory
def initial(d, m):
    zeros = torch.zeros(d * m)
    return {"W_down": torch.randn(m, d) / d ** 0.5, "b_down": zeros[:m],
            "W_up": zeros.view(d, m), "b_up": torch.zeros(d)}

# right: another style
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
