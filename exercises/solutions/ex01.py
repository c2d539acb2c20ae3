def forward(x, W, A, B, alpha):
    s = alpha / A.shape[1]
    return x @ W + s * (x @ A) @ B


def gradients(x, W, A, B, alpha, grad_y):
    s = alpha / A.shape[1]
    thin = grad_y @ B.T
    grad_A = s * x.T @ thin
    grad_B = s * (x @ A).T @ grad_y
    grad_x = grad_y @ W.T + s * thin @ A.T
    return grad_x, grad_A, grad_B
