def precondition(grad_A, grad_B, A, B, delta):
    damping = delta * torch.eye(A.shape[1], dtype=A.dtype)
    new_A = torch.linalg.solve(B @ B.T + damping, grad_A, left=False)
    new_B = torch.linalg.solve(A.T @ A + damping, grad_B)
    return new_A, new_B


def weight_move(G, A, B, s, delta):
    new_A, new_B = precondition(s * G @ B.T, s * A.T @ G, A, B, delta)
    return -s * (new_A @ B + A @ new_B)


def step(grad_A, grad_B, A, B, delta, lr):
    new_A, new_B = precondition(grad_A, grad_B, A, B, delta)
    return A - lr * new_A, B - lr * new_B
