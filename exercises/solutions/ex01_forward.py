"""1. LoRA's forward pass and gradients (Hu et al., arXiv 2106.09685, eq. 3).

A frozen weight W gets a low-rank companion, which alone is trained:

    y = x W + s · (x A) B        s = alpha / r

Here rows are examples and weights act from the right, as in many textbooks; lora.py has it the
other way round. x (n, d_in), W (d_in, d_out), A (d_in, r), B (r, d_out), y (n, d_out).

To think about: with B = 0, which of the two factors gets a gradient in the first step? And what
would happen if A were zero as well?
"""
TO_WRITE = ("forward", "gradients")


def forward(x, W, A, B, alpha):
    """-> y (n, d_out).

    Hint: x A is thin. Made first, the low-rank path costs n·r·(d_in + d_out) multiplications.
    """
    s = alpha / A.shape[1]
    return x @ W + s * (x @ A) @ B


def gradients(x, W, A, B, alpha, grad_y):
    """From grad_y = ∂L/∂y (n, d_out) -> ∂L/∂x, ∂L/∂A, ∂L/∂B, in the shapes of x, A and B.

    By formula: autograd is off here.
    Hint: the gradient of the dense weight would be xᵀ grad_y (d_in, d_out), as large as W; it need
    not be made. W is frozen: it has no gradient, but x's passes through it.
    """
    s = alpha / A.shape[1]
    thin = grad_y @ B.T
    grad_A = s * x.T @ thin
    grad_B = s * (x @ A).T @ grad_y
    grad_x = grad_y @ W.T + s * thin @ A.T
    return grad_x, grad_A, grad_B
