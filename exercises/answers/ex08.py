"""Answers to exercise 8 that the grader must tell from right ones, and one more right one."""
WRONG = {
    "the scale is missing": ("return W0 + s * B @ A, new_A", "return W0 + B @ A, new_A"),
    "the new A is the old one": (
        "new_A = (2 * torch.rand_like(A) - 1) / n ** 0.5", "new_A = A / A.abs().max() / n ** 0.5"),
    "the new A is zero": ("(2 * torch.rand_like(A) - 1) / n ** 0.5", "torch.zeros_like(A)"),
    "the new A is too small": ("(2 * torch.rand_like(A) - 1) / n ** 0.5",
                               "(2 * torch.rand_like(A) - 1) / n"),
    "B is not reset": ("new_A, torch.zeros_like(B)", "new_A, B.clone()"),
    "W0 changes in place": ("return W0 + s * B @ A, new_A", "return W0.add_(s * B @ A), new_A"),
    "the factors keep the state, and all else loses it": (
        "if name not in names", "if name in names"),
    "the step counts on": (
        "{name: moments for name, moments in state.items() if name not in names}",
        "{name: {'step': moments['step']} if name in names else moments\n"
        "            for name, moments in state.items()}"),
    "all state goes": (
        "{name: moments for name, moments in state.items() if name not in names}", "{}"),
    "the links are multiplied in the wrong order": (
        "torch.cat(As), torch.cat(Bs, dim=1)", "torch.cat(As), torch.cat(Bs[::-1], dim=1)"),
}

RIGHT = '''
import copy

import torch


def restart(W0, A, B, s):
    new_A = torch.empty_like(A)
    torch.nn.init.kaiming_uniform_(new_A, a=5 ** 0.5)
    return torch.addmm(W0, B, A, alpha=s), new_A, B * 0


def restarted_state(state, names):
    left = copy.deepcopy(state)
    for name in names:
        left.pop(name, None)
    return left


def as_one(links):
    A = torch.vstack([A for A, _ in links])
    B = torch.hstack([B for _, B in links])
    return 2 * A, B / 2
'''
