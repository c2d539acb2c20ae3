def merge(layer):
    if "kept" in layer:
        return dict(layer)
    s = layer["alpha"] / layer["A"].shape[1]
    merged = layer["W"] + s * layer["A"] @ layer["B"]
    return {**layer, "W": merged, "kept": layer["W"]}


def unmerge(layer):
    if "kept" not in layer:
        return dict(layer)
    restored = {**layer, "W": layer["kept"]}
    del restored["kept"]
    return restored


def merged_head(wte, A, B, alpha):
    s = alpha / A.shape[1]
    return wte.T + s * A @ B
