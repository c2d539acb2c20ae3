def sylvester(K, L, C):
    k, U = torch.linalg.eigh(K)
    l, V = torch.linalg.eigh(L)
    return U @ (U.T @ C @ V / (k[:, None] + l)) @ V.T


def adjusted(grad_A, grad_B, A, B, s):
    BtB, AAt = B.T @ B, A @ A.T
    from_A = torch.linalg.solve(BtB, grad_A) / s ** 2
    outside = grad_B - B @ torch.linalg.solve(BtB, B.T @ grad_B)
    X = sylvester(BtB, AAt, -from_A @ A.T)
    g_A = from_A + X @ A
    g_B = torch.linalg.solve(AAt, outside, left=False) / s ** 2 - B @ X
    return g_A, g_B
