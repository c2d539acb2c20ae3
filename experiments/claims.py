"""What the papers claim and seconds can check: each claim with its numbers and a verdict.

    python -m experiments.claims

writes a CSV for each question to experiments/results, from which experiments.figures draws, and
prints the verdicts; the exit code is 1 if one is not what it was. Nothing here is trained for long:
these are statements about first steps and about small exact problems.
"""
import argparse
import math
import statistics
import sys
from pathlib import Path

import torch
import torch.nn as nn

import lora
from data import base, tasks, tokenizer
from data.files import write_csv
from runs import print_anywhere

RESULTS = Path(__file__).with_name("results")
WIDTHS = (64, 256, 1024, 4096)
RULES = {"shared rate": lambda n: 1, "constant ratio 16": lambda n: 16,
         "ratio n/16": lambda n: n / 16}
RANKS = (1, 2, 4, 8, 16, 32)
CONDITIONS = (1, 3, 10, 30, 100)
LARGER_CONDITIONS = (300, 1000)  # near the target only: from afar plain descent takes too long
IMBALANCES = (1, 2, 4, 8, 16)
STEP_SIZES = (1, 0.7, 0.5, 0.35, 0.25, 0.12, 0.06, 0.03, 0.015, 0.008)  # with 1, none converges
REFUTED = ("there the best pairs have η_B ≫ η_A",)  # what does not hold here


# LoRA+ (2402.12354, §3.2, proposition 2 and theorem 1)

def feature_update(width, lr, ratio, seed):
    """Mean sizes of B·ΔA·x and ΔB·A·x in Adam's second step, the first in which A moves."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(width, generator=generator) for _ in range(2))
    A = torch.randn(4, width, generator=generator) / width ** 0.5
    A, B = A.requires_grad_(), torch.zeros(width, 4, requires_grad=True)
    optimizer = torch.optim.Adam([{"params": [A]}, {"params": [B], "lr": ratio * lr}], lr)
    for _ in range(2):
        A_before, B_before = A.detach().clone(), B.detach().clone()
        optimizer.zero_grad()
        (B @ (A @ x) - y).square().sum().backward()
        optimizer.step()
    with torch.no_grad():
        from_A = B_before @ ((A - A_before) @ x)
        from_B = (B - B_before) @ (A_before @ x)
    return from_A.abs().mean().item(), from_B.abs().mean().item()


def share_of_B(width, ratio, seed):
    """B's part of the update, at the rate with which the whole update has size 1."""
    low, high = 1e-8, 10.0
    for _ in range(25):
        lr = (low * high) ** 0.5
        from_A, from_B = feature_update(width, lr, ratio, seed)
        low, high = (lr, high) if from_A + from_B < 1 else (low, lr)
    return from_B / (from_A + from_B)


def widths():
    for rule, ratio in RULES.items():
        for width in WIDTHS:
            shares = [share_of_B(width, ratio(width), seed) for seed in range(25)]
            low, middle, high = statistics.quantiles(shares)
            yield {"rule": rule, "width": width, "share_of_B": round(middle, 4),
                   "low_quartile": round(low, 4), "high_quartile": round(high, 4)}


def toy_losses(seed, rates, marks=(10, 200)):
    """LoRA+'s own toy (§2, figure 2): W_out·relu(BA·relu(W_in x)) learns sin(mean x).

    -> the test losses at these steps of gradient descent, for every pair of η_A and η_B: two
    tensors (pairs,). A ~ N(0, 1/n) and B ~ N(0, 1), the rest frozen; d 5, n 100, r 4.
    """
    generator = torch.Generator().manual_seed(seed)
    d, n, r = 5, 100, 4
    x = torch.randn(1100, d, generator=generator)
    y = torch.sin(x.mean(dim=1))
    hidden = torch.relu(x @ torch.randn(d, n, generator=generator) / d ** 0.5)
    out = torch.randn(n, generator=generator) / n ** 0.5
    lr_A, lr_B = (each.flatten()[:, None, None] for each in torch.meshgrid(rates, rates,
                                                                            indexing="ij"))
    A = (torch.randn(r, n, generator=generator) / n ** 0.5).expand(len(lr_A), r, n).clone()
    B = torch.randn(n, r, generator=generator).expand(len(lr_B), n, r).clone()
    A.requires_grad_(), B.requires_grad_()
    losses = []
    for step in range(max(marks) + 1):
        error = torch.relu(hidden @ A.mT @ B.mT) @ out - y  # (pairs, samples)
        if step in marks:
            losses.append(error[:, 1000:].square().mean(dim=1).detach())
        grad_A, grad_B = torch.autograd.grad(error[:, :1000].square().mean(dim=1).sum() / 2, (A, B))
        with torch.no_grad():
            A -= lr_A * grad_A
            B -= lr_B * grad_B
    return [loss.nan_to_num(float("inf")) for loss in losses]


def toy():
    rates = torch.logspace(-2.5, 1, 8)
    for seed in range(3):
        for mark, losses in zip((10, 200), toy_losses(seed, rates)):
            for i, loss in enumerate(losses.tolist()):
                yield {"seed": seed, "step": mark, "lr_A": round(rates[i // 8].item(), 5),
                       "lr_B": round(rates[i % 8].item(), 5), "loss": float(f"{loss:.4g}")}


# LoRA-GA (2407.05000, theorem 3.1)

def base_gradients(batches, size=32):
    """∂L/∂W0 of the shipped base, summed over batches of math -> a list of (d_out, d_in)."""
    model, task = base.load(), tasks.load("math", tokenizer.load(), 128)
    weights = [module.weight for name, module in model.named_modules()
               if isinstance(module, nn.Linear) and name != "lm_head"]
    for step in range(batches):
        model(*task.batch(0, step, size))[1].backward()
    return [W.grad.double() for W in weights]


def cosine_of_first_step(G, A, B):
    """Between G and the direction −(BBᵀG + GAᵀA) in which a first gradient step moves −W."""
    step = B @ (B.T @ G) + (G @ A.T) @ A
    return (step * G).sum().item() / (step.norm() * G.norm()).item()


def alignment():
    gradients = base_gradients(4)
    for rank in RANKS:
        found = {"LoRA": [], "LoRA-GA": [], "best possible": []}
        for G in gradients:
            d_out, d_in = G.shape
            for seed in range(3):
                torch.manual_seed(seed)
                A = nn.init.kaiming_uniform_(torch.empty(rank, d_in, dtype=G.dtype), a=5 ** 0.5)
                found["LoRA"].append(cosine_of_first_step(G, A, G.new_zeros(d_out, rank)))
            found["LoRA-GA"].append(cosine_of_first_step(G, *lora.lora_ga_factors(G, rank)))
            S = torch.linalg.svdvals(G)
            found["best possible"].append((S[:2 * rank].norm() / S.norm()).item())
        for start, cosines in found.items():
            yield {"start": start, "rank": rank, "cosine": round(statistics.median(cosines), 4),
                   "least": round(min(cosines), 4), "most": round(max(cosines), 4)}


def samples():
    """The first step on 2048 questions, from factors that saw fewer: its share of the best."""
    whole = base_gradients(64)
    for questions in (8, 32, 128, 512):
        seen = base_gradients(max(1, questions // 32), min(questions, 32))
        shares = []
        for G, part in zip(whole, seen):
            best = cosine_of_first_step(G, *lora.lora_ga_factors(G, 8))
            shares.append(cosine_of_first_step(G, *lora.lora_ga_factors(part, 8)) / best)
        yield {"questions": questions, "share": round(statistics.median(shares), 4),
               "least": round(min(shares), 4), "most": round(max(shares), 4)}


# LoRA's scales (Thinking Machines, "LoRA Without Regret", 2025)

def weight_after(steps, s, lr_A, lr_B, size_A):
    """s·BA after some steps of Adam (ε = 0) on a regression, from A `size_A` times as large."""
    generator = torch.Generator().manual_seed(0)
    x, y, A = (torch.randn(*shape, dtype=torch.float64, generator=generator)
               for shape in ((32, 10), (32, 12), (3, 10)))
    A, B = (size_A * A).requires_grad_(), torch.zeros(12, 3, dtype=A.dtype, requires_grad=True)
    groups = [{"params": [A], "lr": lr_A}, {"params": [B], "lr": lr_B}]
    optimizer = torch.optim.Adam(groups, eps=1e-300)  # not 0: A's first gradient is
    for _ in range(steps):
        optimizer.zero_grad()
        (s * x @ A.T @ B.T - y).square().mean().backward()
        optimizer.step()
    return s * (B @ A).detach()


def scales():
    """(s, A's size, η_A, η_B) -> (s/pq, p·, p·, q·)."""
    plain = weight_after(50, s=2.0, lr_A=0.01, lr_B=0.02, size_A=1.0)
    for p, q in ((4, 1), (1, 4), (10, 0.3)):
        other = weight_after(50, s=2.0 / (p * q), lr_A=0.01 * p, lr_B=0.02 * q, size_A=p)
        yield {"p": p, "q": q, "difference": f"{(other - plain).norm() / plain.norm():.1e}"}


# The Riemannian preconditioner (2402.02347, §4)

def target(condition):
    """Y (30, 20) of rank 4 and this condition number, as its factors U·√S and √S·Vᵀ."""
    generator = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(d, 4, dtype=torch.float64, generator=generator))[0]
            for d in (30, 20))
    S = torch.logspace(0, -math.log10(condition), 4, dtype=torch.float64)
    return U * S.sqrt(), S.sqrt()[:, None] * V.T


def near(condition, imbalance):
    """A start with BA = 0.81·Y, so that every split (t·B, A/t) begins at the same product."""
    B, A = target(condition)
    return 0.9 * B * imbalance, 0.9 * A / imbalance


def far(condition, seed):
    """A small random start."""
    generator = torch.Generator().manual_seed(100 + seed)
    return [0.1 * torch.randn(factor.shape, dtype=torch.float64, generator=generator)
            for factor in target(condition)]


def iterations(condition, start, step_size, preconditioned, most):
    """Gradient steps on ½‖BA − Y‖² until ‖BA − Y‖ < 1e-6 ‖Y‖ -> their number, at most `most`."""
    left, right = target(condition)
    Y = left @ right
    B, A = start
    for count in range(most):
        error = B @ A - Y
        if error.norm() < 1e-6 * Y.norm():
            return count
        if not error.norm() < 1e3 * Y.norm():
            break
        grad_A, grad_B = B.T @ error, error @ A.T
        if preconditioned:
            [grad_A], [grad_B] = lora.precondition([grad_A], [grad_B], [A], [B], damping=1e-12)
        A, B = A - step_size * grad_A, B - step_size * grad_B
    return most


def conditioning():
    """Each at the best of STEP_SIZES, and at most 10,000."""
    cases = [("near start", condition, near(condition, 1))
             for condition in CONDITIONS + LARGER_CONDITIONS]
    cases += [("unbalanced start", t, near(10, t)) for t in IMBALANCES]
    cases += [("random start", condition, far(condition, seed))
              for condition in CONDITIONS for seed in range(3)]
    for case, value, start in cases:
        condition = 10 if case == "unbalanced start" else value
        fewest = {}
        for name in ("plain", "preconditioned"):
            fewest[name] = 10000
            for size in STEP_SIZES:
                fewest[name] = iterations(condition, start, size, name != "plain", fewest[name])
        yield {"case": case, "value": value, **fewest}


def relu_iterations(condition, step_size, preconditioned, most):
    """The same for a two-layer ReLU network, mean ½‖relu(BA x) − relu(Y x)‖² over 500 normal x."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 20, dtype=torch.float64, generator=generator)
    left, right = target(condition)
    y = torch.relu(x @ (left @ right).T)
    B, A = near(condition, 1)
    for count in range(most):
        z = x @ (B @ A).T
        error = torch.relu(z) - y
        if error.norm() < 1e-6 * y.norm():
            return count
        G = (error * (z > 0)).T @ x / len(x)
        grad_A, grad_B = B.T @ G, G @ A.T
        if preconditioned:
            [grad_A], [grad_B] = lora.precondition([grad_A], [grad_B], [A], [B], damping=1e-12)
        A, B = A - step_size * grad_A, B - step_size * grad_B
    return most


def network():
    for condition in (1, 10, 100):
        fewest = {"plain": 3000, "preconditioned": 3000}
        for name in fewest:
            for size in (2, 1.4, 1, 0.7, 0.5, 0.25):  # twice as large: relu halves the gradient
                count = relu_iterations(condition, size, name != "plain", fewest[name])
                fewest[name] = min(count, fewest[name])
        yield {"condition": condition, **fewest}


# The verdicts

TABLES = (scales, widths, toy, alignment, samples, conditioning, network)
WORDS = {True: "holds", False: "does not hold here"}


def column(rows, name, **where):
    return [row[name] for row in rows if all(row[key] == value for key, value in where.items())]


def numbers(values):
    return " ".join(f"{value:.3g}" if value < 100 else f"{value:.0f}" for value in values)


def best_ratio(toy, seed, step):
    """η_B / η_A of the pair with the least test loss."""
    mine = [row for row in toy if row["seed"] == seed and row["step"] == step]
    best = min(mine, key=lambda row: row["loss"])
    return best["lr_B"] / best["lr_A"]


def largest_that_learns(toy, factor, loss=0.1):
    """The largest rate of a factor at which each seed has a run that ends below a loss; the answer
    zero has a sixth."""
    ends = [row for row in toy if row["step"] == 200 and row["loss"] < loss]
    return min(max(column(ends, factor, seed=seed)) for seed in range(3))


def only_plain_slows_down(plain, scaled):
    """From the least condition number to the largest."""
    return scaled[-1] <= 1.2 * min(scaled) and plain[-1] > 10 * plain[0]


def exponent(shares):
    """The slope of log share over log width, from the least width to the largest."""
    slope = math.log(shares[-1] / shares[0]) / math.log(WIDTHS[-1] / WIDTHS[0])
    return round(slope, 2) + 0.0  # no minus zero


def of_scales(scales):
    apart = max(float(row["difference"]) for row in scales)
    yield ("A's start and η_A times p, η_B times q, s over pq: with Adam the same run",
           "LoRA Without Regret", f"difference {apart:.0e} after 50 steps", apart < 1e-10)


def of_lora_plus(widths, toy):
    shared, constant, linear = (column(widths, "share_of_B", rule=rule) for rule in RULES)
    yield ("with one rate, B's share of the update vanishes as the width grows", "LoRA+ prop. 2",
           f"{numbers(shared)} at n = {numbers(WIDTHS)}, about n^{exponent(shared):.2f}",
           shared[-1] < shared[0] / 4)
    yield ("a constant ratio puts that off and does not cure it", "LoRA+ thm. 1",
           f"{numbers(constant)}, about n^{exponent(constant):.2f}",
           constant[-1] < constant[0] / 2 and constant[-1] > 2 * shared[-1])
    yield ("a ratio in proportion to n cures it", "LoRA+ thm. 1",
           f"{numbers(linear)}, about n^{exponent(linear):.2f}",
           max(linear) < 1.5 * min(linear))

    of_A, of_B = largest_that_learns(toy, "lr_A"), largest_that_learns(toy, "lr_B")
    yield ("in the toy, B bears larger learning rates than A", "LoRA+ §2, fig. 2",
           f"the largest that learn: η_A {of_A:g}, η_B {of_B:g}",
           of_B > 9 * of_A)
    early, late = ([best_ratio(toy, seed, step) for seed in range(3)] for step in (10, 200))
    yield ("there the best pairs have η_B ≫ η_A", "LoRA+ §2, fig. 2",
           f"η_B/η_A of the best, by seed: {numbers(early)} after 10 steps, {numbers(late)} after "
           "200",
           min(early + late) >= 4)


def of_lora_ga(alignment, samples):
    plain, ga, best = (column(alignment, "cosine", start=start)
                       for start in ("LoRA", "LoRA-GA", "best possible"))
    yield ("LoRA-GA's first step is the best of rank 2r", "LoRA-GA thm. 3.1",
           f"cosine {numbers(ga)}, best {numbers(best)}, LoRA {numbers(plain)} at r = "
           f"{numbers(RANKS)}",
           all(abs(a - b) < 1e-3 for a, b in zip(ga, best)))
    shares, questions = column(samples, "share"), column(samples, "questions")
    yield ("a few samples give a good enough gradient", "LoRA-GA §3.4",
           f"{numbers(shares)} of the best cosine from {numbers(questions)} questions",
           shares[1] > 0.9)


def of_the_preconditioner(conditioning, network):
    def counts(rows, **where):
        return [column(rows, name, **where) for name in ("plain", "preconditioned")]

    plain, scaled = counts(conditioning, case="near start")
    conditions = numbers(CONDITIONS + LARGER_CONDITIONS)
    yield ("preconditioned descent does not slow down with the condition number", "Riemannian §4",
           f"steps: {numbers(scaled)}, plain {numbers(plain)} at κ = {conditions}",
           only_plain_slows_down(plain, scaled))
    by_seeds = [counts(conditioning, case="random start", value=each) for each in CONDITIONS]
    plain, scaled = zip(*([statistics.median(seeds) for seeds in each] for each in by_seeds))
    yield ("nor does it from a small random start", "Riemannian §4",
           f"steps: {numbers(scaled)}, plain {numbers(plain)} at κ = {numbers(CONDITIONS)} "
           "(10000: or more)",
           only_plain_slows_down(plain, scaled))
    plain, scaled = counts(network)
    yield ("nor in a two-layer ReLU network", "Riemannian §4",
           f"steps: {numbers(scaled)}, plain {numbers(plain)} at κ = "
           f"{numbers(column(network, 'condition'))}",
           only_plain_slows_down(plain, scaled))
    plain, scaled = counts(conditioning, case="unbalanced start")
    yield ("preconditioned descent does not see how BA is split into t·B and A/t", "Riemannian §3",
           f"steps: {numbers(scaled)}, plain {numbers(plain)} at t = {numbers(IMBALANCES)}",
           max(scaled) == min(scaled) and max(plain) > 2 * min(plain))


def verdicts(scales, widths, toy, alignment, samples, conditioning, network):
    """(claim, source, result, holds) from the rows of the tables."""
    yield from of_scales(scales)
    yield from of_lora_plus(widths, toy)
    yield from of_lora_ga(alignment, samples)
    yield from of_the_preconditioner(conditioning, network)


def main():
    argparse.ArgumentParser(prog="python -m experiments.claims", description=__doc__,
                            formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print_anywhere()
    tables = {}
    for table in TABLES:
        print(f"{table.__name__} ...", flush=True)
        rows = tables[table.__name__] = list(table())
        write_csv(RESULTS / f"{table.__name__}.csv", list(rows[0]), rows)
    print("\n| claim | source | result | verdict |\n|---|---|---|---|")
    failed = []
    for claim, source, result, holds in verdicts(**tables):
        print(f"| {claim} | {source} | {result} | {WORDS[holds]} |")
        if holds == (claim in REFUTED):
            failed.append(claim)
    sys.exit("not as it was found before: " + "; ".join(failed) if failed else 0)


if __name__ == "__main__":
    main()
