def learning_rates(names, lr, ratio):
    return {name: ratio * lr if name.split(".")[-1] == "lora_B" else lr for name in names}


def update_parts(x, A, B, dA, dB, alpha):
    s = alpha / A.shape[1]
    from_A = s * (x @ dA) @ B
    from_B = s * (x @ A) @ dB
    both = s * (x @ dA) @ dB
    return from_A, from_B, both


def rates_for_width(lr_A, lr_B, width, new_width):
    return lr_A * width / new_width, lr_B
