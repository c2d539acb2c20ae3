"""Answers to exercise 2 that the grader must tell from right ones, and one more right one."""
WRONG = {
    "unmerge subtracts": (
        'restored = {**layer, "W": layer["kept"]}',
        's = layer["alpha"] / layer["A"].shape[1]\n'
        '    restored = {**layer, "W": layer["W"] - s * layer["A"] @ layer["B"]}'),
    "merging twice adds twice": ('    if "kept" in layer:\n        return dict(layer)\n', ""),
    "the scale is missing": ('layer["W"] + s * layer["A"]', 'layer["W"] + layer["A"]'),
    "the weight is changed in place": (
        'merged = layer["W"] + s * layer["A"] @ layer["B"]',
        'merged = layer["W"].add_(s * layer["A"] @ layer["B"])'),
    "the dict is changed in place": (
        'return {**layer, "W": merged, "kept": layer["W"]}',
        'layer.update(kept=layer["W"], W=merged)\n    return layer'),
    "an unmerged layer passes for a merged one": ('    del restored["kept"]\n', ""),
    "the embedding is changed with the head": (
        "embedding.T + s * A @ B", "embedding.T.add_(s * A @ B)"),
    "the head's scale is the rank's root": (
        "s = alpha / A.shape[1]\n    return embedding",
        "s = alpha / A.shape[1] ** 0.5\n    return embedding"),
}

RIGHT = '''
import torch


def merge(layer):
    if layer.get("base") is not None:
        return {**layer}
    W, A, B = layer["W"], layer["A"], layer["B"]
    return {**layer, "W": torch.addmm(W, A, B, alpha=layer["alpha"] / len(B)), "base": W.clone()}


def unmerge(layer):
    base = layer.get("base")
    return {**layer, "W": layer["W"] if base is None else base, "base": None}


def merged_head(embedding, A, B, alpha):
    head = embedding.clone()
    head += alpha / len(B) * (B.T @ A.T)
    return head.T
'''
