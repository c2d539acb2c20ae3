def factors(G, r, gamma):
    U, _, Vh = torch.linalg.svd(G, full_matrices=False)
    c = G.shape[1] ** 0.25 / gamma ** 0.5
    return c * U[:, :r], c * Vh[r:2 * r]


def start_from(W, G, r, alpha, gamma):
    A, B = factors(G, r, gamma)
    s = alpha / r ** 0.5
    return W - s * A @ B, A, B
