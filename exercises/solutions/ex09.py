def projection(B):
    return B @ torch.linalg.pinv(B)


def frozen_factor(m, r, seed):
    generator = torch.Generator().manual_seed(seed)
    columns = torch.randn(m, r, dtype=torch.float64, generator=generator)
    return torch.linalg.qr(columns)[0]


def direction(grad_A, B, s):
    return torch.linalg.pinv(B.T @ B) @ grad_A / s ** 2


def restart(W0, A, B, s, seed):
    new_B = frozen_factor(*B.shape, seed).to(B)
    return W0 + s * B @ A, torch.zeros_like(A), new_B
