"""5. The Riemannian preconditioner (Zhang & Pilanci, arXiv 2402.02347, algorithm 1).

10 A and B/10 make the same weight as A and B, but LoRA's next step from them is different: the
gradient of a factor grows with the other factor, and so does what its step does to the weight. The
preconditioner divides by both: it multiplies each gradient by the inverse of an r × r Gram matrix,
which holds the inner products of the other factor's r vectors. In algorithm 1 the weight is
W + B A, with B (d_out, r) and A (r, d_in):

    ∇A ← (BᵀB + δI)⁻¹ ∇A        ∇B ← ∇B (AAᵀ + δI)⁻¹        δ: a little damping

On purpose the weights stand to the right of x here, as in exercise 1: the weight is W + s·AB with
A (d_in, r) and B (r, d_out). With G = ∂L/∂W (d_in, d_out) the gradients are ∇A = s GBᵀ (d_in, r)
and ∇B = s AᵀG (r, d_out). Both Gram matrices are r × r, so the wrong one fits as well: work out
first which goes where.

As δ → 0, and where both Gram matrices are invertible, a small step moves the weight by −η s² times
(G projected onto B's rows, plus G projected onto A's columns). This is the same step for all A and
B that make the same weight.

To think about: which of the two gradients needs the damping at LoRA's start, with B = 0? And how
large is the inverse there?
"""
import torch


def precondition(grad_A, grad_B, A, B, delta):
    """∇A (d_in, r), ∇B (r, d_out) and the factors -> the preconditioned two, in the same shapes.

    Hint: transpose algorithm 1. torch.linalg.solve needs no inverse; δI needs A's dtype.
    """
    raise NotImplementedError


def weight_move(G, A, B, s, delta):
    """G (d_in, d_out) -> how W + s·AB moves in a preconditioned step of descent (d_in, d_out).

    A and B move by −η times their new gradients. Asked for is the move to first order, for η = 1.
    Hint: the product rule.
    """
    raise NotImplementedError


def step(grad_A, grad_B, A, B, delta, lr):
    """One step of gradient descent with preconditioned gradients -> the new A, the new B.

    Hint: both gradients belong to the factors as they came.
    """
    raise NotImplementedError
