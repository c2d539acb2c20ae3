"""3. LoRA+ (Hayou et al., arXiv 2402.12354, theorem 1).

In one step A becomes A + dA and B becomes B + dB. What the adapter computes, s·x A B, changes by
three parts, and their sum is exact:

    s·x dA B  (from A)        s·x A dB  (from B)        s·x dA dB  (from both)

A step of Adam moves each entry by about its learning rate, however large the gradient. Let the
model be wide, n = d_in. Each number of x dA sums n terms, mostly of one sign: as ∂L/∂A is
s·xᵀ(∂L/∂y)Bᵀ, the entries of dA have the signs of x's, or all the opposite ones. Each number of
(x A) dB sums only r terms. (A is random, its numbers about 1/√n, so that x A stays of one size.)
With one rate for both, either the part from A grows with n, or the part from B vanishes. For both
to keep their size, the theorem asks for

    η_A ∝ 1/n        η_B constant

LoRA+ in practice is shorter: one rate lr for all that trains, and B's is ratio · lr.

x (rows, d_in), A and dA (d_in, r), B and dB (r, d_out); s = alpha / r.

To think about: a fixed ratio does not follow the theorem as n grows. What does it put off, and why
is it used all the same? And which parts are zero in the very first step, with B = 0?
"""
TO_WRITE = ("learning_rates", "update_parts", "rates_for_width")


def learning_rates(names, lr, ratio):
    """Names of parameters, as "h.0.attn.lora_B" or "ln.weight" -> {name: its learning rate}.

    What follows a name's last dot, or the name if it has none, tells: the factors are those called
    lora_A and lora_B, and all others are no factors, whatever they contain.
    Hint: ratio 1 is LoRA.
    """
    raise NotImplementedError


def update_parts(x, A, B, dA, dB, alpha):
    """-> the change of s·x A B from A, from B and from both, each (rows, d_out).

    Hint: multiply out (A + dA)(B + dB). A product with x stays thin.
    """
    raise NotImplementedError


def rates_for_width(lr_A, lr_B, width, new_width):
    """Rates that are good at one width -> the pair η_A, η_B for another, by the theorem.

    Hint: at the same width they stay as they are.
    """
    raise NotImplementedError
