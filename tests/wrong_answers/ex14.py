"""Wrong answers to exercise 14, and right ones in another style, laid over the solution."""

# wrong: the second plane uses the first plane's λ
def added(x, P1, lam1, Q1, P2, lam2, Q2):
    first = (x @ Q1.T * lam1) @ P1.T
    second = (x @ Q2.T * lam1[:len(lam2)]) @ P2.T
    return first + second

# wrong: the planes' overlap in Q costs nothing
def penalty(P1, P2, Q1, Q2):
    total = (P1.T @ P2).square().sum()
    for columns in (P1, P2, Q1.T, Q2.T):
        I = torch.eye(columns.shape[1], dtype=columns.dtype, device=columns.device)
        total = total + (columns.T @ columns - I).square().sum()
    return total

# wrong: the norms are not squared
def penalty(P1, P2, Q1, Q2):
    total = (P1.T @ P2).square().sum() + (Q1 @ Q2.T).square().sum()
    for columns in (P1, P2, Q1.T, Q2.T):
        I = torch.eye(columns.shape[1], dtype=columns.dtype, device=columns.device)
        total = total + (columns.T @ columns - I).norm()
    return total

# wrong: the gradient takes one P of PᵀP for a constant
def penalty_gradient(P1, P2, Q1, Q2):
    def pull(own, other):
        I = torch.eye(own.shape[1], dtype=own.dtype, device=own.device)
        return 2 * own @ (own.T @ own - I) + 2 * other @ (other.T @ own)

    return pull(P1, P2), pull(P2, P1), pull(Q1.T, Q2.T).T, pull(Q2.T, Q1.T).T

# wrong: the gradient forgets the other plane
def penalty_gradient(P1, P2, Q1, Q2):
    def pull(own, other):
        I = torch.eye(own.shape[1], dtype=own.dtype, device=own.device)
        return 4 * own @ (own.T @ own - I)

    return pull(P1, P2), pull(P2, P1), pull(Q1.T, Q2.T).T, pull(Q2.T, Q1.T).T

# wrong: the overlap is counted twice in the gradient
def penalty_gradient(P1, P2, Q1, Q2):
    def pull(own, other):
        I = torch.eye(own.shape[1], dtype=own.dtype, device=own.device)
        return 4 * own @ (own.T @ own - I) + 4 * other @ (other.T @ own)

    return pull(P1, P2), pull(P2, P1), pull(Q1.T, Q2.T).T, pull(Q2.T, Q1.T).T

# wrong: the gradient is autograd's
def penalty_gradient(P1, P2, Q1, Q2):
    factors = [each.clone().requires_grad_() for each in (P1, P2, Q1, Q2)]
    return torch.autograd.grad(penalty(*factors), factors)

    def pull(own, other):
        I = torch.eye(own.shape[1], dtype=own.dtype, device=own.device)
        return 4 * own @ (own.T @ own - I) + 2 * other @ (other.T @ own)

    return pull(P1, P2), pull(P2, P1), pull(Q1.T, Q2.T).T, pull(Q2.T, Q1.T).T

# wrong: importance is the size of λ
def pruned(P, lam, Q, grad_lam, keep):
    best = lam.abs().topk(keep).indices
    return P[:, best], lam[best], Q[best]

# wrong: importance has a sign
def pruned(P, lam, Q, grad_lam, keep):
    best = (lam * grad_lam).topk(keep).indices
    return P[:, best], lam[best], Q[best]

# wrong: the least important ranks are kept
def pruned(P, lam, Q, grad_lam, keep):
    best = (lam * grad_lam).abs().topk(keep, largest=False).indices
    return P[:, best], lam[best], Q[best]

# wrong: P loses the wrong columns
def pruned(P, lam, Q, grad_lam, keep):
    best = (lam * grad_lam).abs().topk(keep).indices
    return P[:, :keep], lam[best], Q[best]

# wrong: importance has the lengths of the vectors in it
def pruned(P, lam, Q, grad_lam, keep):
    importance = (lam * grad_lam).abs() * P.norm(dim=0) * Q.norm(dim=1)
    best = importance.topk(keep).indices
    return P[:, best], lam[best], Q[best]

# wrong: more ranks than asked for are kept where some are equal
def pruned(P, lam, Q, grad_lam, keep):
    importance = (lam * grad_lam).abs()
    best = importance >= importance.sort(descending=True).values[keep - 1]
    return P[:, best], lam[best], Q[best]

# right: another style
import torch

def added(x, P1, lam1, Q1, P2, lam2, Q2):
    P, Q = torch.cat((P1, P2), dim=1), torch.cat((Q1, Q2))
    return torch.einsum("...n,rn,r,mr->...m", x, Q, torch.cat((lam1, lam2)), P)

def gram(first, second):
    return first @ first.T - torch.eye(len(first)), second @ second.T - torch.eye(len(second))

def penalty(P1, P2, Q1, Q2):
    total = 0
    for first, second in ((P1.T, P2.T), (Q1, Q2)):
        own1, own2 = gram(first, second)
        total = total + own1.norm() ** 2 + own2.norm() ** 2 + (second @ first.T).norm() ** 2
    return total

def penalty_gradient(P1, P2, Q1, Q2):
    found = []
    for first, second in ((P1.T, P2.T), (Q1, Q2)):
        own1, own2 = gram(first, second)
        cross = first @ second.T
        found.append(4 * own1 @ first + 2 * cross @ second)
        found.append(4 * own2 @ second + 2 * cross.T @ first)
    return found[0].T, found[1].T, found[2], found[3]

def pruned(P, lam, Q, grad_lam, keep):
    order = sorted(range(len(lam)), key=lambda i: -abs(float(lam[i] * grad_lam[i])))[:keep]
    order.sort()
    return P[:, order], lam[order], Q[order]
