"""Wrong answers to exercise 11, and right ones in another style, laid over the solution."""

# wrong: the scale is not taken out
def adjusted(grad_A, grad_B, A, B, s):
    BtB, AAt = B.T @ B, A @ A.T
    from_A = torch.linalg.solve(BtB, grad_A) / s
    outside = grad_B - B @ torch.linalg.solve(BtB, B.T @ grad_B)
    X = sylvester(BtB, AAt, -from_A @ A.T)
    g_A = from_A + X @ A
    g_B = torch.linalg.solve(AAt, outside, left=False) / s ** 2 - B @ X
    return g_A, g_B

# wrong: X is left out
def adjusted(grad_A, grad_B, A, B, s):
    BtB, AAt = B.T @ B, A @ A.T
    from_A = torch.linalg.solve(BtB, grad_A) / s ** 2
    outside = grad_B - B @ torch.linalg.solve(BtB, B.T @ grad_B)
    X = torch.zeros_like(BtB)
    g_A = from_A + X @ A
    g_B = torch.linalg.solve(AAt, outside, left=False) / s ** 2 - B @ X
    return g_A, g_B

# wrong: X has the other sign in g_B
def adjusted(grad_A, grad_B, A, B, s):
    BtB, AAt = B.T @ B, A @ A.T
    from_A = torch.linalg.solve(BtB, grad_A) / s ** 2
    outside = grad_B - B @ torch.linalg.solve(BtB, B.T @ grad_B)
    X = sylvester(BtB, AAt, -from_A @ A.T)
    g_A = from_A + X @ A
    g_B = torch.linalg.solve(AAt, outside, left=False) / s ** 2 + B @ X
    return g_A, g_B

# wrong: the projection is left out
def adjusted(grad_A, grad_B, A, B, s):
    BtB, AAt = B.T @ B, A @ A.T
    from_A = torch.linalg.solve(BtB, grad_A) / s ** 2
    outside = grad_B
    X = sylvester(BtB, AAt, -from_A @ A.T)
    g_A = from_A + X @ A
    g_B = torch.linalg.solve(AAt, outside, left=False) / s ** 2 - B @ X
    return g_A, g_B

# wrong: the equation's sign is forgotten
def adjusted(grad_A, grad_B, A, B, s):
    BtB, AAt = B.T @ B, A @ A.T
    from_A = torch.linalg.solve(BtB, grad_A) / s ** 2
    outside = grad_B - B @ torch.linalg.solve(BtB, B.T @ grad_B)
    X = sylvester(BtB, AAt, from_A @ A.T)
    g_A = from_A + X @ A
    g_B = torch.linalg.solve(AAt, outside, left=False) / s ** 2 - B @ X
    return g_A, g_B

# right: another style
import torch

def sylvester(P, Q, R):
    I = torch.eye(len(P), dtype=P.dtype)
    flat = torch.linalg.solve(torch.kron(P, I) + torch.kron(I, Q.T.contiguous()), R.reshape(-1))
    return flat.reshape(R.shape)

def adjusted(grad_A, grad_B, A, B, s):
    left, right = torch.linalg.inv(B.T @ B), torch.linalg.inv(A @ A.T)
    P = B @ left @ B.T
    X = sylvester(B.T @ B, A @ A.T, -left @ grad_A @ A.T / s ** 2)
    I = torch.eye(len(P), dtype=P.dtype)
    return left @ grad_A / s ** 2 + X @ A, (I - P) @ grad_B @ right / s ** 2 - B @ X
