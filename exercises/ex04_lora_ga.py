"""4. LoRA-GA (Wang et al., arXiv 2407.05000, algorithm 1 and theorem 3.1).

LoRA starts from a random A, and its first steps go in a random direction. LoRA-GA looks first:
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

W, G (d_in, d_out), U (d_in, ·), V (d_out, ·), A (d_in, r), B (r, d_out); 2r ≤ min(d_in, d_out). On
purpose the weights stand to the right of x, as in exercise 1: the paper's G is this G transposed.

To think about: what would the first step be if A and B took the same r directions? And what is
missing if somebody gets A and B after training, and puts them on the untouched W?
"""
import torch


def factors(G, r, gamma):
    """-> A (d_in, r), B (r, d_out).

    Hint: torch.linalg.svd returns one of the two orthogonal matrices transposed. The signs of
    singular vectors are arbitrary; does anything here depend on them?
    """
    raise NotImplementedError


def start_from(W, G, r, alpha, gamma):
    """-> the new frozen W (d_in, d_out), A, B, which together compute what W did.

    Hint: s is not that of exercise 1. How large is what you take out of W?
    """
    raise NotImplementedError
