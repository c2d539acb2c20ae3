"""3. LoRA+ (Hayou et al., arXiv 2402.12354, theorem 1).

In one step A becomes A + dA and B becomes B + dB. What the adapter computes, s·x A B, changes by
three parts, and their sum is exact:

    s·x dA B  (from A)        s·x A dB  (from B)        s·x dA dB  (from both)

A step of Adam moves each entry by about its learning rate, however large the gradient. Let the
model be wide: d_in is large. Each number of x dA sums d_in terms, mostly of one sign: as ∂L/∂A is
s·xᵀ(∂L/∂y)Bᵀ, the entries of dA have the signs of x's entries, or all the opposite signs. Each
number of (x A) dB sums only r terms. (A is random, its numbers about 1/√d_in, so that x A keeps its
size.) With one rate for both, either the part from A grows with d_in, or the part from B vanishes.
For both to keep their size, the theorem asks for

    η_A ∝ 1/d_in        η_B constant

LoRA+ in practice is shorter: one rate lr for all that trains, and B's is ratio · lr.

x (rows, d_in), A and dA (d_in, r), B and dB (r, d_out); s = alpha / r. On purpose the weights stand
to the right of x, as in exercise 1.

To think about: a fixed ratio does not follow the theorem as d_in grows. What does it delay, and why
is it used nevertheless? And which parts are zero in the very first step, with B = 0?
"""


def learning_rates(names, lr, ratio):
    """Names of parameters, as "h.0.attn.lora_B" or "ln.weight" -> {name: its learning rate}.

    The last word of a name, after its last dot if it has one, decides: lora_A and lora_B are the
    factors. All other names are no factors, whatever they contain.
    Hint: ratio 1 is LoRA.
    """
    raise NotImplementedError


def update_parts(x, A, B, dA, dB, alpha):
    """-> the change of s·x A B from A, from B and from both, each (rows, d_out).

    Hint: multiply out (A + dA)(B + dB). A product with x stays thin.
    """
    raise NotImplementedError


def rates_for_width(lr_A, lr_B, width, new_width):
    """Rates that are good at one width d_in -> the pair η_A, η_B for another, by the theorem.

    Hint: at the same width they stay as they are. Neither width need be a multiple of the other.
    """
    raise NotImplementedError
