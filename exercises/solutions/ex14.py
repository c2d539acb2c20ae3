def added(x, P1, lam1, Q1, P2, lam2, Q2):
    first = (x @ Q1.T * lam1) @ P1.T
    second = (x @ Q2.T * lam2) @ P2.T
    return first + second


def penalty(P1, P2, Q1, Q2):
    total = (P1.T @ P2).square().sum() + (Q1 @ Q2.T).square().sum()
    for columns in (P1, P2, Q1.T, Q2.T):
        I = torch.eye(columns.shape[1], dtype=columns.dtype, device=columns.device)
        total = total + (columns.T @ columns - I).square().sum()
    return total


def penalty_gradient(P1, P2, Q1, Q2):
    def pull(own, other):
        I = torch.eye(own.shape[1], dtype=own.dtype, device=own.device)
        return 4 * own @ (own.T @ own - I) + 2 * other @ (other.T @ own)

    return pull(P1, P2), pull(P2, P1), pull(Q1.T, Q2.T).T, pull(Q2.T, Q1.T).T


def pruned(P, lam, Q, grad_lam, keep):
    best = (lam * grad_lam).abs().topk(keep).indices
    return P[:, best], lam[best], Q[best]
