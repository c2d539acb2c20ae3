"""2. Merging (Hu et al., arXiv 2106.09685, section 4.1), and a tied output layer.

After training the adapter can be put into the weight. The layer is then one plain product, as fast
as before, and the base model's code can run it:

    W_merged = W + s · A B        x W_merged = x W + s · (x A) B        s = alpha / r

One often wants the base back, to train on or for the next adapter. On paper one subtracts s·AB. In
float32, (W + s·AB) − s·AB is close to W, but seldom W: where s·AB is larger, W's last digits are
gone. After a hundred adapters the base would be another one. Here it must come back bit for bit.

In many language models the output layer is tied: it has no weight of its own, but uses the token
embedding wte (vocab, d), as logits = h wteᵀ. An adapter on it is meant for the output alone.

A layer is a dict with W (d_in, d_out), A (d_in, r), B (r, d_out) and alpha, a number. On purpose
the weights stand to the right of x, as in exercise 1. Merged, a layer computes x @ layer["W"]. Your
functions may add keys of their own, for tensors, numbers, text, lists and dicts. A model has many
layers: what belongs to a layer is kept in its dict and nowhere else.

To think about: a server has one base and an adapter for each of a thousand customers. What speaks
for merging, and what against?
"""


def merge(layer):
    """-> a new dict, the merged layer. If the layer is merged already, a dict with the same values.

    The dict that comes in, and its tensors, stay as they are. A, B and alpha keep their names.
    Hint: what will `unmerge` need that it could not compute?
    """
    raise NotImplementedError


def unmerge(layer):
    """-> a new dict, the layer as before `merge`, W bit for bit. One not merged stays as it is.

    Hint: training may go on from here, and a later `merge` must then merge the new A and B.
    """
    raise NotImplementedError


def merged_head(wte, A, B, alpha):
    """wte (vocab, d), A (d, r), B (r, vocab) -> the merged output weight (d, vocab), for h @ it.

    Hint: the same wte goes on to turn tokens into vectors. What must not happen to it?
    """
    raise NotImplementedError
