"""Wrong answers to exercise 5, and right ones in another style, laid over the solution."""

# wrong: the Gram matrices are exchanged
def precondition(grad_A, grad_B, A, B, delta):
    damping = delta * torch.eye(A.shape[1], dtype=A.dtype)
    new_A = torch.linalg.solve(A.T @ A + damping, grad_A, left=False)
    new_B = torch.linalg.solve(B @ B.T + damping, grad_B)
    return new_A, new_B

# wrong: A's gradient is left as it is
def precondition(grad_A, grad_B, A, B, delta):
    damping = delta * torch.eye(A.shape[1], dtype=A.dtype)
    new_A = grad_A
    new_B = torch.linalg.solve(A.T @ A + damping, grad_B)
    return new_A, new_B

# wrong: the damping is added to every entry
def precondition(grad_A, grad_B, A, B, delta):
    damping = delta
    new_A = torch.linalg.solve(B @ B.T + damping, grad_A, left=False)
    new_B = torch.linalg.solve(A.T @ A + damping, grad_B)
    return new_A, new_B

# wrong: the damping is left out
def precondition(grad_A, grad_B, A, B, delta):
    damping = 0 * torch.eye(A.shape[1], dtype=A.dtype)
    new_A = torch.linalg.solve(B @ B.T + damping, grad_A, left=False)
    new_B = torch.linalg.solve(A.T @ A + damping, grad_B)
    return new_A, new_B

# wrong: A's Gram matrix is not damped
def precondition(grad_A, grad_B, A, B, delta):
    damping = delta * torch.eye(A.shape[1], dtype=A.dtype)
    new_A = torch.linalg.solve(B @ B.T + damping, grad_A, left=False)
    new_B = torch.linalg.solve(A.T @ A, grad_B)
    return new_A, new_B

# wrong: the move lacks one scale
def weight_move(G, A, B, s, delta):
    new_A, new_B = precondition(s * G @ B.T, s * A.T @ G, A, B, delta)
    return -(new_A @ B + A @ new_B)

# wrong: the move goes uphill
def weight_move(G, A, B, s, delta):
    new_A, new_B = precondition(s * G @ B.T, s * A.T @ G, A, B, delta)
    return s * (new_A @ B + A @ new_B)

# wrong: the move forgets B's part
def weight_move(G, A, B, s, delta):
    new_A, new_B = precondition(s * G @ B.T, s * A.T @ G, A, B, delta)
    return -s * (new_A @ B)

# wrong: the step takes the new A for B's gradient
def step(grad_A, grad_B, A, B, delta, lr):
    new_A, new_B = precondition(grad_A, grad_B, A, B, delta)
    A = A - lr * new_A
    return A, B - lr * precondition(grad_A, grad_B, A, B, delta)[1]

# wrong: the step uses the gradients as they are
def step(grad_A, grad_B, A, B, delta, lr):
    new_A, new_B = precondition(grad_A, grad_B, A, B, delta)
    return A - lr * grad_A, B - lr * grad_B

# right: another style
import torch

def inverse(gram, delta):
    size, vectors = torch.linalg.eigh(gram)
    return vectors / (size + delta) @ vectors.T

def precondition(grad_A, grad_B, A, B, delta):
    return [grad_A @ inverse(B @ B.T, delta), inverse(A.T @ A, delta) @ grad_B]

def weight_move(G, A, B, s, delta):
    on_rows = B.T @ inverse(B @ B.T, delta) @ B
    on_columns = A @ inverse(A.T @ A, delta) @ A.T
    return -s * s * (G @ on_rows + on_columns @ G)

def step(grad_A, grad_B, A, B, delta, lr):
    left, right = inverse(A.T @ A, delta), inverse(B @ B.T, delta)
    return [A - lr * grad_A @ right, B - lr * left @ grad_B]
