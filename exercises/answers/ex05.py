"""Answers to exercise 5 that the grader must tell from right ones, and one more right one."""
WRONG = {
    "the Gram matrices are exchanged": (
        "new_A = torch.linalg.solve(B @ B.T + damping, grad_A, left=False)\n"
        "    new_B = torch.linalg.solve(A.T @ A + damping, grad_B)",
        "new_A = torch.linalg.solve(A.T @ A + damping, grad_A, left=False)\n"
        "    new_B = torch.linalg.solve(B @ B.T + damping, grad_B)"),
    "A's gradient is left as it is": (
        "new_A = torch.linalg.solve(B @ B.T + damping, grad_A, left=False)", "new_A = grad_A"),
    "the damping is added to every entry": (
        "delta * torch.eye(A.shape[1], dtype=A.dtype)", "delta"),
    "the damping is left out": ("damping = delta *", "damping = 0 *"),
    "A's Gram matrix is not damped": ("A.T @ A + damping", "A.T @ A"),
    "the move lacks one scale": ("return -s * (new_A", "return -(new_A"),
    "the move goes uphill": ("return -s * (new_A", "return s * (new_A"),
    "the move forgets B's part": ("(new_A @ B + A @ new_B)", "(new_A @ B)"),
    "the step takes the new A for B's gradient": (
        "return A - lr * new_A, B - lr * new_B",
        "A = A - lr * new_A\n"
        "    return A, B - lr * precondition(grad_A, grad_B, A, B, delta)[1]"),
    "the step uses the gradients as they are": (
        "return A - lr * new_A, B - lr * new_B", "return A - lr * grad_A, B - lr * grad_B"),
}

RIGHT = '''
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
'''
