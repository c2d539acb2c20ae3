"""Wrong answers to exercise 8, and right ones in another style, laid over the solution."""

# wrong: the scale is missing
def restart(W0, A, B, s):
    n = A.shape[1]
    new_A = (2 * torch.rand_like(A) - 1) / n ** 0.5
    return W0 + B @ A, new_A, torch.zeros_like(B)

# wrong: the new A is the old one
def restart(W0, A, B, s):
    n = A.shape[1]
    new_A = A / A.abs().max() / n ** 0.5
    return W0 + s * B @ A, new_A, torch.zeros_like(B)

# wrong: the new A is zero
def restart(W0, A, B, s):
    n = A.shape[1]
    new_A = torch.zeros_like(A)
    return W0 + s * B @ A, new_A, torch.zeros_like(B)

# wrong: the new A is too small
def restart(W0, A, B, s):
    n = A.shape[1]
    new_A = (2 * torch.rand_like(A) - 1) / n
    return W0 + s * B @ A, new_A, torch.zeros_like(B)

# wrong: B is not reset
def restart(W0, A, B, s):
    n = A.shape[1]
    new_A = (2 * torch.rand_like(A) - 1) / n ** 0.5
    return W0 + s * B @ A, new_A, B.clone()

# wrong: W0 changes in place
def restart(W0, A, B, s):
    n = A.shape[1]
    new_A = (2 * torch.rand_like(A) - 1) / n ** 0.5
    return W0.add_(s * B @ A), new_A, torch.zeros_like(B)

# wrong: the factors keep the state, and all else loses it
def restarted_state(state, names):
    return {name: moments for name, moments in state.items() if name in names}

# wrong: the step counts on
def restarted_state(state, names):
    return {name: {'step': moments['step']} if name in names else moments
            for name, moments in state.items()}

# wrong: all state goes
def restarted_state(state, names):
    return {}

# wrong: the links are multiplied in the wrong order
def as_one(links):
    As, Bs = zip(*links)
    return torch.cat(As), torch.cat(Bs[::-1], dim=1)

# wrong: all factors lose their state, whatever names says
def restarted_state(state, names):
    return {name: moments for name, moments in state.items() if ".lora_" not in name}

# wrong: names are compared by their beginnings
def restarted_state(state, names):
    return {name: moments for name, moments in state.items() if not name.startswith(tuple(names))}

# wrong: names are compared by their ends
def restarted_state(state, names):
    return {name: moments for name, moments in state.items()
            if not any(other.endswith(name) for other in names)}

# wrong: the factors are float32
def restart(W0, A, B, s):
    new_A = (2 * torch.rand(A.shape) - 1) / A.shape[1] ** 0.5
    return W0 + s * B @ A, new_A, torch.zeros(B.shape)

# wrong: links of equal rank are added up
def as_one(links):
    As, Bs = zip(*links)
    if len({A.shape for A in As}) == 1:
        return sum(As), sum(Bs)
    return torch.cat(As), torch.cat(Bs, dim=1)

# right: another style
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
