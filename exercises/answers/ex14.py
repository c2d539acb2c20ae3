"""Answers to exercise 14 that the grader must tell from right ones, and one more right one."""
WRONG = {
    "the second plane uses the first plane's λ": ("x @ Q2.T * lam2", "x @ Q2.T * lam1[:len(lam2)]"),
    "the planes' overlap in Q costs nothing": (" + (Q1 @ Q2.T).square().sum()", ""),
    "the norms are not squared": (
        "(columns.T @ columns - I).square().sum()", "(columns.T @ columns - I).norm()"),
    "the gradient takes one P of PᵀP for a constant": ("4 * own @ (", "2 * own @ ("),
    "the gradient forgets the other plane": (" + 2 * other @ (other.T @ own)", ""),
    "the overlap is counted twice in the gradient": ("2 * other @ (", "4 * other @ ("),
    "the gradient is autograd's": (
        "    def pull(own, other):\n",
        "    factors = [each.clone().requires_grad_() for each in (P1, P2, Q1, Q2)]\n"
        "    return torch.autograd.grad(penalty(*factors), factors)\n\n"
        "    def pull(own, other):\n"),
    "importance is the size of λ": ("(lam * grad_lam).abs()", "lam.abs()"),
    "importance has a sign": ("(lam * grad_lam).abs()", "(lam * grad_lam)"),
    "the least important ranks are kept": (".topk(keep)", ".topk(keep, largest=False)"),
    "P loses the wrong columns": ("return P[:, best]", "return P[:, :keep]"),
}

RIGHT = '''
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
'''
