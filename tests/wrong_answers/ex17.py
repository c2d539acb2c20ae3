"""Wrong answers to exercise 17, and right ones in another style, laid over the solution."""

# wrong: the embedding's scale is missing
def embedding(tokens, wte, A, B, s):
    return wte[tokens] + A.T[tokens] @ B.T

# wrong: the embedding takes rows of A
def embedding(tokens, wte, A, B, s):
    return wte[tokens] + s * A[tokens % len(A)][..., :B.shape[1]] @ B.T

# wrong: the stride is that of both convolutions
def convolution(x, A, B, s, stride, padding):
    return s * conv2d(conv2d(x, A, stride=stride, padding=padding), B, stride=stride)

# wrong: the padding is that of both convolutions
def convolution(x, A, B, s, stride, padding):
    return s * conv2d(conv2d(x, A, stride=stride, padding=padding), B, padding=padding)

# wrong: the kernel lacks the scale
def kernel(A, B, s):
    return torch.einsum("oj,jikl->oikl", B[:, :, 0, 0], A)

# wrong: the kernel's rows and columns are exchanged
def kernel(A, B, s):
    return s * torch.einsum("oj,jikl->oilk", B[:, :, 0, 0], A)

# wrong: the key is adapted in place of the value
def query_value(x, A_q, B_q, A_v, B_v, s):
    query, value = s * (x @ A_q.T) @ B_q.T, s * (x @ A_v.T) @ B_v.T
    return torch.cat((query, value, torch.zeros_like(query)), dim=-1)

# wrong: query and value share an A
def query_value(x, A_q, B_q, A_v, B_v, s):
    query, value = s * (x @ A_q.T) @ B_q.T, s * (x @ A_q.T) @ B_v.T
    return torch.cat((query, torch.zeros_like(query), value), dim=-1)

# wrong: B's share of the convolution is counted with its own k × k
def parameter_counts(vocab, d, m, n, k, r):
    return {"embedding": r * (vocab + d), "convolution": r * (n + m) * k * k,
            "query_value": 4 * r * d}

# wrong: the key is counted
def parameter_counts(vocab, d, m, n, k, r):
    return {"embedding": r * (vocab + d), "convolution": r * (n * k * k + m),
            "query_value": r * (d + 3 * d) + 2 * r * d}

# right: dense products
def embedding(tokens, wte, A, B, s):
    return (wte + s * (B @ A).T)[tokens]

def convolution(x, A, B, s, stride, padding):
    return conv2d(x, kernel(A, B, s), None, stride, padding)

def kernel(A, B, s):
    return s * (B.flatten(1) @ A.flatten(1)).view(len(B), *A.shape[1:])

def query_value(x, A_q, B_q, A_v, B_v, s):
    d = x.shape[-1]
    added = x.new_zeros(*x.shape[:-1], 3 * d)
    added[..., :d] = x @ (s * B_q @ A_q).T
    added[..., 2 * d:] = x @ (s * B_v @ A_v).T
    return added
