"""Wrong answers to exercise 2, and right ones in another style, laid over the solution."""

# wrong: unmerge subtracts
def unmerge(layer):
    if "kept" not in layer:
        return dict(layer)
    s = layer["alpha"] / layer["A"].shape[1]
    restored = {**layer, "W": layer["W"] - s * layer["A"] @ layer["B"]}
    del restored["kept"]
    return restored

# wrong: merging twice adds twice
def merge(layer):
    s = layer["alpha"] / layer["A"].shape[1]
    merged = layer["W"] + s * layer["A"] @ layer["B"]
    return {**layer, "W": merged, "kept": layer["W"]}

# wrong: the scale is missing
def merge(layer):
    if "kept" in layer:
        return dict(layer)
    s = layer["alpha"] / layer["A"].shape[1]
    merged = layer["W"] + layer["A"] @ layer["B"]
    return {**layer, "W": merged, "kept": layer["W"]}

# wrong: the weight is changed in place
def merge(layer):
    if "kept" in layer:
        return dict(layer)
    s = layer["alpha"] / layer["A"].shape[1]
    merged = layer["W"].add_(s * layer["A"] @ layer["B"])
    return {**layer, "W": merged, "kept": layer["W"]}

# wrong: the dict is changed in place
def merge(layer):
    if "kept" in layer:
        return dict(layer)
    s = layer["alpha"] / layer["A"].shape[1]
    merged = layer["W"] + s * layer["A"] @ layer["B"]
    layer.update(kept=layer["W"], W=merged)
    return layer

# wrong: an unmerged layer passes for a merged one
def unmerge(layer):
    if "kept" not in layer:
        return dict(layer)
    restored = {**layer, "W": layer["kept"]}
    return restored

# wrong: the embedding is changed with the head
def merged_head(wte, A, B, alpha):
    s = alpha / A.shape[1]
    return wte.T.add_(s * A @ B)

# wrong: the head's scale is the rank's root
def merged_head(wte, A, B, alpha):
    s = alpha / A.shape[1] ** 0.5
    return wte.T + s * A @ B

# wrong: one variable keeps the weight of whatever was merged last
kept = {}

def merge(layer):
    if "merged" in layer:
        return dict(layer)
    kept["W"] = layer["W"]
    s = layer["alpha"] / layer["A"].shape[1]
    return {**layer, "W": layer["W"] + s * layer["A"] @ layer["B"], "merged": True}

def unmerge(layer):
    if "merged" not in layer:
        return dict(layer)
    restored = {**layer, "W": kept["W"]}
    del restored["merged"]
    return restored

# right: another style
import torch

def merge(layer):
    if layer.get("base") is not None:
        return {**layer}
    W, A, B = layer["W"], layer["A"], layer["B"]
    return {**layer, "W": torch.addmm(W, A, B, alpha=layer["alpha"] / len(B)), "base": W.clone()}

def unmerge(layer):
    base = layer.get("base")
    return {**layer, "W": layer["W"] if base is None else base, "base": None}

def merged_head(wte, A, B, alpha):
    head = wte.clone()
    head += alpha / len(B) * (B.T @ A.T)
    return head.T
