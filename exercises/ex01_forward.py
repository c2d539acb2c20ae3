"""1. LoRA's forward pass and gradients (Hu et al., arXiv 2106.09685, eq. 3).

A frozen weight W gets a low-rank companion, and only the companion trains:

    y = x W + s · (x A) B        s = alpha / r

x (rows, d_in), W (d_in, d_out), A (d_in, r), B (r, d_out), y (rows, d_out). On purpose the weights
stand to the right of x, as in many textbooks. lora.py and the paper have W (d_out, d_in) and BA:
all matrices are transposed there.

To think about: with B = 0, which of the two factors gets a gradient in the first step? And what
would happen if A were zero as well?
"""


def forward(x, W, A, B, alpha):
    """-> y (rows, d_out).

    Hint: x A is thin. With x A first, the low-rank path costs rows·r·(d_in + d_out)
    multiplications.
    """
    raise NotImplementedError


def gradients(x, W, A, B, alpha, grad_y):
    """From grad_y = ∂L/∂y (rows, d_out) -> ∂L/∂x, ∂L/∂A, ∂L/∂B, in the shapes of x, A and B.

    By formula: autograd is off here.
    Hint: the gradient of the dense weight would be xᵀ grad_y (d_in, d_out), as large as W, but
    nothing here needs it. W is frozen and has no gradient; x's gradient passes through W.
    """
    raise NotImplementedError
