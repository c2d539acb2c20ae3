"""Wrong answers to exercise 10, and right ones in another style, laid over the solution."""

# wrong: the singular value is left out
def booster(R):
    U, S, Vh = torch.linalg.svd(R, full_matrices=False)
    return U[:, :1], Vh[:1]

# wrong: the smallest direction is taken
def booster(R):
    U, S, Vh = torch.linalg.svd(R, full_matrices=False)
    return S[-1] * U[:, len(S) - 1:len(S)], Vh[-1:]

# wrong: a booster is taken out whole, and added in part
def boost(R, rounds, rate):
    residual, boosters = R, []
    for _ in range(rounds):
        b, a = booster(residual)
        residual = residual - b @ a
        boosters.append((b, a))
    return boosters

# wrong: the residual forgets the earlier rounds
def boost(R, rounds, rate):
    residual, boosters = R, []
    for _ in range(rounds):
        b, a = booster(residual)
        residual = R - rate * b @ a
        boosters.append((b, a))
    return boosters

# wrong: the merged booster stays on top
def merge(W, b, a, new_a, rate):
    return W + rate * b @ a, b, new_a

# wrong: the booster is merged whole
def merge(W, b, a, new_a, rate):
    return W + b @ a, torch.zeros_like(b), new_a

# wrong: both factors start from zero
def merge(W, b, a, new_a, rate):
    return W + rate * b @ a, torch.zeros_like(b), torch.zeros_like(new_a)

# wrong: a layer can be drawn twice
def chosen_layers(names, count, round):
    return random.Random(round).choices(names, k=count)

# wrong: the layers take turns
def chosen_layers(names, count, round):
    return [names[(round * count + i) % len(names)] for i in range(count)]

# wrong: every call draws anew
def chosen_layers(names, count, round):
    return random.Random().sample(names, count)

# wrong: Python's random numbers are seeded
def chosen_layers(names, count, round):
    random.seed(round)
    return random.sample(names, count)

# wrong: a round's layers are remembered, not made again
kept = {}

def chosen_layers(names, count, round):
    if (count, round) not in kept:
        kept[count, round] = random.Random().sample(names, count)
    return kept[count, round]

# wrong: two rounds have the same layers
def chosen_layers(names, count, round):
    return random.Random(round // 2).sample(names, count)

# wrong: the draw differs from process to process
def chosen_layers(names, count, round):
    return random.Random(hash((*names, round))).sample(names, count)

# right: another style
import torch

def booster(R):
    values, vectors = torch.linalg.eigh(R.T @ R)
    a = vectors[:, -1:].T
    return R @ a.T, a

def boost(R, rounds, rate):
    if rounds == 0:
        return []
    b, a = booster(R)
    return [(b, a)] + boost(R - rate * b * a, rounds - 1, rate)

def merge(W, b, a, new_a, rate):
    return torch.addmm(W, b, a, alpha=rate), 0 * b, new_a.clone()

def chosen_layers(names, count, round):
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(round))
    return [names[i] for i in sorted(order[:count].tolist())]
