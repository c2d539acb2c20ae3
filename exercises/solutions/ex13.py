def forward_flops(tokens, n, m, r):
    return {"thin": 2 * tokens * (n * m + n * r + r * m), "dense": 2 * n * m * (r + tokens)}


def backward_flops(tokens, n, m, r):
    flops = {}
    for way in BACKWARD_WAYS:
        dX, dA, dB = way.split()
        dY_Bt = tokens * m * r if "thin" in (dX, dA) else 0
        Xt_dY = n * tokens * m if "dense" in (dA, dB) else 0
        for_dX = tokens * m * n + (tokens * r * n if dX == "thin" else n * r * m)
        for_dA = n * tokens * r if dA == "thin" else n * m * r
        for_dB = tokens * n * r + r * tokens * m if dB == "thin" else r * n * m
        flops[way] = 2 * (dY_Bt + Xt_dY + for_dX + for_dA + for_dB)
    return flops


def forward(X, W, A, B, way):
    if way == "thin":
        return X @ W + (X @ A) @ B
    return X @ (W + A @ B)


def backward(X, W, A, B, dY, way):
    for_dX, for_dA, for_dB = way.split()
    dY_Bt = dY @ B.T if "thin" in (for_dX, for_dA) else None  # (tokens, r)
    Xt_dY = X.T @ dY if "dense" in (for_dA, for_dB) else None  # (n, m)
    dX = dY @ W.T + dY_Bt @ A.T if for_dX == "thin" else dY @ (W + A @ B).T
    dA = X.T @ dY_Bt if for_dA == "thin" else Xt_dY @ B.T
    dB = (X @ A).T @ dY if for_dB == "thin" else A.T @ Xt_dY
    return dX, dA, dB
