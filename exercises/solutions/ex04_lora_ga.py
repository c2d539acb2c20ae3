"""4. LoRA-GA (Wang et al., arXiv 2407.05000, algorithm 1 and theorem 3.1).

LoRA starts from a random A, and its first steps go where chance has pointed. LoRA-GA looks first:
it takes the gradient G = ∂L/∂W of the dense weight, once, and starts the factors along its largest
singular directions. With G = U S Vᵀ, singular values falling,

    A = c · (the first r columns of U)
    B = c · (the next r columns of V, as rows)        c = d_out^(1/4) / √gamma

(Any split of the first 2r directions would do; the paper takes this one.)

A and B are not zero, so s·AB is taken out of the frozen weight, and the model starts as it was:

    W ← W − s · A B        s = alpha / √r

Note the root: with it s·AB has the norm alpha·√d_out/gamma at every rank. A small step η of
gradient descent on A and B moves the weight by −η s² (G BᵀB + A AᵀG). This is the best rank-2r
approximation of G, times a number.

W, G (d_in, d_out), U (d_in, ·), V (d_out, ·), A (d_in, r), B (r, d_out); 2r ≤ min(d_in, d_out).

To think about: what would the first step be if A and B took the same r directions? And what is
missing if somebody gets A and B after training, and puts them on the untouched W?
"""
import torch

TO_WRITE = ("factors", "start_from")


def factors(G, r, gamma):
    """-> A (d_in, r), B (r, d_out).

    Hint: torch.linalg.svd gives one of the two orthogonal matrices transposed. The signs of
    singular vectors are a matter of chance; does anything here depend on them?
    """
    U, _, Vh = torch.linalg.svd(G, full_matrices=False)
    c = G.shape[1] ** 0.25 / gamma ** 0.5
    return c * U[:, :r], c * Vh[r:2 * r]


def start_from(W, G, r, alpha, gamma):
    """-> the new frozen W (d_in, d_out), A, B, which together compute what W did.

    Hint: s is not that of exercise 1. How large is what you take out of W?
    """
    A, B = factors(G, r, gamma)
    s = alpha / r ** 0.5
    return W - s * A @ B, A, B
