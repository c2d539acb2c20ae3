def initial(d, m):
    return {"W_down": torch.randn(m, d) / d ** 0.5, "b_down": torch.zeros(m),
            "W_up": torch.zeros(d, m), "b_up": torch.zeros(d)}


def adapter(h, W_down, b_down, W_up, b_up):
    bottleneck = torch.nn.functional.gelu(h @ W_down.T + b_down)
    return h + bottleneck @ W_up.T + b_up


def parameter_count(d, m):
    return 2 * d * m + d + m
