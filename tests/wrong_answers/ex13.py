"""Wrong answers to exercise 13, and right ones in another style, laid over the solution."""

# wrong: a multiplication with its addition counts once
def forward_flops(tokens, n, m, r):
    return {"thin": tokens * (n * m + n * r + r * m), "dense": 2 * n * m * (r + tokens)}

# wrong: the product A B is free
def forward_flops(tokens, n, m, r):
    return {"thin": 2 * tokens * (n * m + n * r + r * m), "dense": 2 * n * m * tokens}

# wrong: the addition W + A B counts
def forward_flops(tokens, n, m, r):
    return {"thin": 2 * tokens * (n * m + n * r + r * m), "dense": 2 * n * m * (r + tokens) + n * m}

# wrong: dY Bᵀ is paid by dX only
def backward_flops(tokens, n, m, r):
    flops = {}
    for way in BACKWARD_WAYS:
        dX, dA, dB = way.split()
        dY_Bt = tokens * m * r if dX == "thin" else 0
        Xt_dY = n * tokens * m if "dense" in (dA, dB) else 0
        for_dX = tokens * m * n + (tokens * r * n if dX == "thin" else n * r * m)
        for_dA = n * tokens * r if dA == "thin" else n * m * r
        for_dB = tokens * n * r + r * tokens * m if dB == "thin" else r * n * m
        flops[way] = 2 * (dY_Bt + Xt_dY + for_dX + for_dA + for_dB)
    return flops

# wrong: Xᵀ dY is paid twice where two share it
def backward_flops(tokens, n, m, r):
    flops = {}
    for way in BACKWARD_WAYS:
        dX, dA, dB = way.split()
        dY_Bt = tokens * m * r if "thin" in (dX, dA) else 0
        Xt_dY = n * tokens * m * ((dA == "dense") + (dB == "dense"))
        for_dX = tokens * m * n + (tokens * r * n if dX == "thin" else n * r * m)
        for_dA = n * tokens * r if dA == "thin" else n * m * r
        for_dB = tokens * n * r + r * tokens * m if dB == "thin" else r * n * m
        flops[way] = 2 * (dY_Bt + Xt_dY + for_dX + for_dA + for_dB)
    return flops

# wrong: X A is taken from the way forward
def backward_flops(tokens, n, m, r):
    flops = {}
    for way in BACKWARD_WAYS:
        dX, dA, dB = way.split()
        dY_Bt = tokens * m * r if "thin" in (dX, dA) else 0
        Xt_dY = n * tokens * m if "dense" in (dA, dB) else 0
        for_dX = tokens * m * n + (tokens * r * n if dX == "thin" else n * r * m)
        for_dA = n * tokens * r if dA == "thin" else n * m * r
        for_dB = r * tokens * m if dB == "thin" else r * n * m
        flops[way] = 2 * (dY_Bt + Xt_dY + for_dX + for_dA + for_dB)
    return flops

# wrong: W's way to X is forgotten
def backward(X, W, A, B, dY, way):
    for_dX, for_dA, for_dB = way.split()
    dY_Bt = dY @ B.T if "thin" in (for_dX, for_dA) else None  # (tokens, r)
    Xt_dY = X.T @ dY if "dense" in (for_dA, for_dB) else None  # (n, m)
    dX = dY_Bt @ A.T if for_dX == "thin" else dY @ (W + A @ B).T
    dA = X.T @ dY_Bt if for_dA == "thin" else Xt_dY @ B.T
    dB = (X @ A).T @ dY if for_dB == "thin" else A.T @ Xt_dY
    return dX, dA, dB

# wrong: the dense way is the thin one as well
def forward(X, W, A, B, way):
    if way == "thin":
        return X @ W + (X @ A) @ B
    return X @ W + X @ A @ B

# wrong: the thin path goes through A B
def forward(X, W, A, B, way):
    if way == "thin":
        return X @ W + X @ (A @ B)
    return X @ (W + A @ B)

# wrong: dB has one order only
def backward(X, W, A, B, dY, way):
    for_dX, for_dA, for_dB = way.split()
    dY_Bt = dY @ B.T if "thin" in (for_dX, for_dA) else None  # (tokens, r)
    Xt_dY = X.T @ dY if "dense" in (for_dA, for_dB) else None  # (n, m)
    dX = dY @ W.T + dY_Bt @ A.T if for_dX == "thin" else dY @ (W + A @ B).T
    dA = X.T @ dY_Bt if for_dA == "thin" else Xt_dY @ B.T
    dB = (X @ A).T @ dY
    return dX, dA, dB

# wrong: dA goes by dX's word
def backward(X, W, A, B, dY, way):
    for_dX, for_dA, for_dB = way.split()
    dY_Bt = dY @ B.T if "thin" in (for_dX, for_dA) else None  # (tokens, r)
    Xt_dY = X.T @ dY if "dense" in (for_dA, for_dB) else None  # (n, m)
    dX = dY @ W.T + dY_Bt @ A.T if for_dX == "thin" else dY @ (W + A @ B).T
    dA = X.T @ (dY @ B.T) if for_dX == "thin" else X.T @ dY @ B.T
    dB = (X @ A).T @ dY if for_dB == "thin" else A.T @ Xt_dY
    return dX, dA, dB

# wrong: both shared products are made in every way
def backward(X, W, A, B, dY, way):
    dY_Bt, Xt_dY = dY @ B.T, X.T @ dY
    dX, dA, dB = (word == "dense" for word in way.split())
    return [dY @ (W + A @ B).T if dX else dY @ W.T + dY_Bt @ A.T,
            Xt_dY @ B.T if dA else X.T @ dY_Bt, A.T @ Xt_dY if dB else (X @ A).T @ dY]

# wrong: dense products are made twice
def backward(X, W, A, B, dY, way):
    dX, dA, dB = (word == "dense" for word in way.split())
    return [dY @ (W + A @ B).T if dX else dY @ W.T + (dY @ B.T) @ A.T,
            (X.T @ dY) @ B.T if dA else X.T @ (dY @ B.T),
            A.T @ (X.T @ dY) if dB else (X @ A).T @ dY]

# right: another style
import torch

WAYS = ["thin thin thin", "thin thin dense", "thin dense thin", "thin dense dense",
        "dense thin thin", "dense thin dense", "dense dense thin", "dense dense dense"]

def forward_flops(tokens, n, m, r):
    base = tokens * n * m
    return {"dense": 2 * (base + n * m * r), "thin": 2 * (base + tokens * r * (n + m))}

def backward_flops(tokens, n, m, r):
    flops = {}
    for way in WAYS:
        dX, dA, dB = (word == "dense" for word in way.split())
        wide = 1 + (dA or dB)
        small = dX + dA + dB
        along_n = (not dX) + (not dA) + (not dB)
        along_m = (not (dX and dA)) + (not dB)
        flops[way] = 2 * (tokens * n * m * wide + n * m * r * small
                          + tokens * r * (n * along_n + m * along_m))
    return flops

def forward(X, W, A, B, way):
    if way == "dense":
        return X @ torch.addmm(W, A, B)
    return torch.addmm(X @ W, X @ A, B)

def backward(X, W, A, B, dY, way):
    dX, dA, dB = way.split()
    dense = X.T @ dY if "dense" in (dA, dB) else None
    thin = dY @ B.T if "thin" in (dX, dA) else None
    results = []
    if dX == "dense":
        results.append(dY @ torch.addmm(W, A, B).T)
    else:
        results.append(torch.addmm(dY @ W.T, thin, A.T))
    results.append(dense @ B.T if dA == "dense" else X.T @ thin)
    results.append(A.T @ dense if dB == "dense" else ((X @ A).T @ dY))
    return results
