"""2. Merging (Hu et al., arXiv 2106.09685, section 4.1), and a tied output layer.

After training the adapter can be put into the weight. The layer is then one plain product, as fast
as before, and the base model's code can run it:

    W_merged = W + s · A B        x W_merged = x W + s · (x A) B        s = alpha / r

One often wants the base back, to train on or for the next adapter. On paper one subtracts s·AB. In
float32, (W + s·AB) − s·AB is close to W, but seldom W: where s·AB is larger, W's last digits are
gone. After a hundred adapters the base would be another one. Here it must come back bit for bit.

In many language models the output layer is tied: it has no weight of its own, but uses the token
embedding E (V, d), as logits = h Eᵀ. An adapter on it is meant for the output alone.

A layer is a dict with W (d_in, d_out), A (d_in, r), B (r, d_out) and alpha, a number. Merged, it
computes x @ layer["W"]. Your functions may add keys of their own.

To think about: a server has one base and an adapter for each of a thousand customers. What speaks
for merging, and what against?
"""
TO_WRITE = ("merge", "unmerge", "merged_head")


def merge(layer):
    """-> a new dict, the merged layer; of a layer that is merged already, a dict of the same.

    The dict that came in, and its tensors, stay as they are. A, B and alpha keep their names.
    Hint: what will `unmerge` need that it could not compute?
    """
    if "kept" in layer:
        return dict(layer)
    s = layer["alpha"] / layer["A"].shape[1]
    merged = layer["W"] + s * layer["A"] @ layer["B"]
    return {**layer, "W": merged, "kept": layer["W"]}


def unmerge(layer):
    """-> a new dict, the layer as before `merge`, W bit for bit. One not merged stays as it is.

    Hint: training may go on from here, and a later `merge` must then merge the new A and B.
    """
    if "kept" not in layer:
        return dict(layer)
    restored = {**layer, "W": layer["kept"]}
    del restored["kept"]
    return restored


def merged_head(embedding, A, B, alpha):
    """embedding (V, d), A (d, r), B (r, V) -> the merged output weight (d, V), for logits = h @ it.

    Hint: the same embedding goes on to turn tokens into vectors. What must not happen to it?
    """
    s = alpha / A.shape[1]
    return embedding.T + s * A @ B
