"""Wrong answers to exercise 1, and right ones in another style, laid over the solution."""

# wrong: the scale is missing
def forward(x, W, A, B, alpha):
    s = alpha / A.shape[1]
    return x @ W + (x @ A) @ B

# wrong: alpha is not divided by the rank
def forward(x, W, A, B, alpha):
    s = alpha
    return x @ W + s * (x @ A) @ B

# wrong: alpha is divided by the root of the rank
def forward(x, W, A, B, alpha):
    s = alpha / A.shape[1] ** 0.5
    return x @ W + s * (x @ A) @ B

# wrong: A's gradient lacks the scale
def gradients(x, W, A, B, alpha, grad_y):
    s = alpha / A.shape[1]
    thin = grad_y @ B.T
    grad_A = x.T @ thin
    grad_B = s * (x @ A).T @ grad_y
    grad_x = grad_y @ W.T + s * thin @ A.T
    return grad_x, grad_A, grad_B

# wrong: x's gradient passes through W alone
def gradients(x, W, A, B, alpha, grad_y):
    s = alpha / A.shape[1]
    thin = grad_y @ B.T
    grad_A = s * x.T @ thin
    grad_B = s * (x @ A).T @ grad_y
    grad_x = grad_y @ W.T
    return grad_x, grad_A, grad_B

# wrong: gradients uses what forward has kept
def forward(x, W, A, B, alpha):
    global thin
    thin = x @ A
    return x @ W + alpha / len(B) * thin @ B

def gradients(x, W, A, B, alpha, grad_y):
    s = alpha / len(B)
    return (grad_y @ (W + s * A @ B).T, s * x.T @ (grad_y @ B.T),
            s * (thin if len(thin) == len(x) else x @ A).T @ grad_y)

# right: another style
import torch

def forward(x, W, A, B, alpha):
    return torch.einsum("ni,io->no", x, W + alpha * (A @ B) / len(B))

def gradients(x, W, A, B, alpha, grad_y):
    s = alpha / len(B)
    dense = x.T @ grad_y
    return grad_y @ (W + s * A @ B).T, s * dense @ B.T, s * A.T @ dense
