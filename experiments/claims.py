"""What the papers claim and two minutes can check: each claim with its numbers and a verdict.

    python -m experiments.claims

Writes a CSV for each table to experiments/results, from which experiments.figures draws, and the
claims with their numbers to evidence.md. The exit code is 1 if a verdict is not what it was.
Nothing here is trained for long: these are statements about first steps and small exact problems.
"""
import itertools
import math
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import torch.nn as nn

import lora
from data import tasks, tokenizer
from data.files import command_parser, run_command, write_csv
from experiments import compare, question
from model import GPT, GPTConfig

RESULTS = Path(__file__).with_name("results")

# ==== LoRA (2106.09685, §4.2): how many parameters train ==========================================


def sizes():
    """GPT-3's shape with rank 4 in c_attn, which has as many factors' entries as rank 4 in the
    query and the value matrices: 4·r·d for each layer."""
    with torch.device("meta"):
        model = GPT(GPTConfig(block_size=2048, vocab_size=50257, n_layer=96, n_head=96,
                              n_embd=12288))
        total = sum(p.numel() for p in model.parameters())
        lora.apply_lora(model, 4, targets="c_attn")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    yield {"total": total, "trained": trained, "ratio": round(total / trained)}


# ==== LoRA's scales (Thinking Machines, "LoRA Without Regret", 2025) ==============================


def weight_after(steps, s, lr_A, lr_B, size_A):
    """s·BA after some steps of Adam (ε = 0) on a regression, from A `size_A` times as large."""
    generator = torch.Generator().manual_seed(0)
    x, y, A = (torch.randn(*shape, dtype=torch.float64, generator=generator)
               for shape in ((32, 10), (32, 12), (3, 10)))
    A = (size_A * A).requires_grad_()
    B = torch.zeros(12, 3, dtype=A.dtype, requires_grad=True)
    groups = [{"params": [A], "lr": lr_A}, {"params": [B], "lr": lr_B}]
    optimizer = torch.optim.Adam(groups, eps=1e-300)  # not 0, since A's first gradient is 0
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


# ==== LoRA+ (2402.12354, §3.2 and theorem 1), and the preconditioner's theorem 4.1 ================

WIDTHS = (64, 256, 1024, 4096)
RULES = {  # name: B's learning rate over A's at width n, and what is preconditioned
    "shared rate": (lambda n: 1, None),
    "constant ratio 16": (lambda n: 16, None),
    "ratio n/16": (lambda n: n / 16, None),
    "gradient preconditioned": (lambda n: 1, "gradient"),
    "Adam's step preconditioned": (lambda n: 1, "step"),
}


def precondition(for_A, for_B, A, B, damping=1e-12):
    """(BᵀB + δI)⁻¹ · for_A and for_B · (AAᵀ + δI)⁻¹."""
    for_A = lora.damped_inverse(B.T @ B, damping) @ for_A
    return for_A, for_B @ lora.damped_inverse(A @ A.T, damping)


def feature_update(width, lr, ratio, preconditioned, seed):
    """Mean sizes of B·ΔA·x and ΔB·A·x in Adam's second step, the first in which A moves."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(width, generator=generator).double() for _ in range(2))
    A = torch.randn(4, width, generator=generator).double() / width ** 0.5
    A, B = A.requires_grad_(), torch.zeros(width, 4, dtype=A.dtype, requires_grad=True)
    optimizer = torch.optim.Adam([{"params": [A]}, {"params": [B], "lr": ratio * lr}], lr)
    for _ in range(2):
        A_before, B_before = A.detach().clone(), B.detach().clone()
        optimizer.zero_grad()
        (B @ (A @ x) - y).square().sum().backward()
        if preconditioned == "gradient":
            A.grad, B.grad = precondition(A.grad, B.grad, A_before, B_before)
        optimizer.step()
    with torch.no_grad():
        step_A, step_B = A - A_before, B - B_before
        if preconditioned == "step":
            step_A, step_B = precondition(step_A, step_B, A_before, B_before)
        from_A, from_B = B_before @ (step_A @ x), step_B @ (A_before @ x)
    return from_A.abs().mean().item(), from_B.abs().mean().item()


def share_of_B(width, rule, seed):
    """B's part of the update, at the rate with which the whole update has size 1."""
    ratio, preconditioned = RULES[rule]
    low, high = 1e-8, 10.0
    for _ in range(15):
        lr = (low * high) ** 0.5
        from_A, from_B = feature_update(width, lr, ratio(width), preconditioned, seed)
        low, high = (lr, high) if from_A + from_B < 1 else (low, lr)
    return from_B / (from_A + from_B)


def widths():
    for rule in RULES:
        for width in WIDTHS:
            shares = [share_of_B(width, rule, seed) for seed in range(25)]
            low, middle, high = statistics.quantiles(shares)
            yield {"rule": rule, "width": width, "share_of_B": round(middle, 4),
                   "low_quartile": round(low, 4), "high_quartile": round(high, 4)}


# ==== LoRA+'s toy (§3.2, appendix C.1.1) ==========================================================

TOY_STEPS = (10, 200)


def toy_losses(seed, lr_A, lr_B):
    """W_out·relu(BA·relu(W_in x)) learns y = sin(mean x) by gradient descent; A and B train.

    d 5, n 100, r 4; 1000 samples to train on and 100 to test; W_in ~ N(0, 1), W_out ~ N(0, 1/n),
    A ~ N(0, 1/n), B ~ N(0, 1). -> the mean squared test error after each of TOY_STEPS
    """
    generator = torch.Generator().manual_seed(seed)
    d, n, r, samples = 5, 100, 4, 1000
    x = torch.randn(samples + 100, d, generator=generator)
    y = torch.sin(x.mean(dim=1))
    hidden = torch.relu(x @ torch.randn(d, n, generator=generator))  # (samples + 100, n)
    out = torch.randn(n, generator=generator) / n ** 0.5
    A = torch.randn(r, n, generator=generator) / n ** 0.5
    B = torch.randn(n, r, generator=generator)
    losses = []
    for step in range(max(TOY_STEPS) + 1):
        z = hidden @ A.T
        before_relu = z @ B.T
        error = torch.relu(before_relu) @ out - y
        if step in TOY_STEPS:
            losses.append(error[samples:].square().mean().item())
        if not error.abs().max() < 1e6:
            return [math.inf] * len(TOY_STEPS)
        G = 2 / samples * error[:samples, None] * out * (before_relu[:samples] > 0)
        grad_A, grad_B = (G @ B).T @ hidden[:samples], G.T @ z[:samples]
        A, B = A - lr_A * grad_A, B - lr_B * grad_B
    return losses


def toy():
    rates = [float(f"{10 ** (half / 2):.3g}") for half in range(-8, 3)]  # 1e-4 to 10
    for seed in range(3):
        for lr_A, lr_B in itertools.product(rates, rates):
            for step, loss in zip(TOY_STEPS, toy_losses(seed, lr_A, lr_B)):
                yield {"seed": seed, "step": step, "lr_A": lr_A, "lr_B": lr_B,
                       "loss": f"{loss:.4g}"}


def mean_losses(rows, step):
    """The toy's test loss after `step` steps, a mean over the seeds -> {(η_A, η_B): loss}."""
    found = {}
    for row in rows:
        if int(row["step"]) == step:
            rates = float(row["lr_A"]), float(row["lr_B"])
            found.setdefault(rates, []).append(float(row["loss"]))
    return {rates: statistics.mean(losses) for rates, losses in found.items()}


# ==== LoRA-GA (2407.05000, theorem 3.1) ===========================================================

RANKS = (1, 2, 4, 8, 16, 32)


def base_gradients(batches, size=32):
    """∂L/∂W0 of the shipped base, summed over batches of math -> a list of (d_out, d_in)."""
    model, task = GPT.from_pretrained(), tasks.load("math", tokenizer.load(), 128)
    weights = [module.weight for name, module in model.named_modules()
               if isinstance(module, nn.Linear) and name != "lm_head"]
    for step in range(batches):
        model(*task.batch(0, step, size))[1].backward()
    return [W.grad.double() for W in weights]


def cosine_of_first_step(G, A, B):
    """Between G and −ΔW of a first small gradient step, BBᵀG + GAᵀA."""
    step = B @ (B.T @ G) + (G @ A.T) @ A
    return (step * G).sum().item() / (step.norm() * G.norm()).item()


def best_cosine(G, rank):
    """Of the best matrix of this rank."""
    S = torch.linalg.svdvals(G)
    return (S[:rank].norm() / S.norm()).item()


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
            found["best possible"].append(best_cosine(G, 2 * rank))
        for start, cosines in found.items():
            yield {"start": start, "rank": rank, "cosine": round(statistics.median(cosines), 4),
                   "least": round(min(cosines), 4), "most": round(max(cosines), 4)}


def samples():
    """How well the start from a few questions fits the gradient of 2048, relative to the best."""
    whole = base_gradients(64)
    for questions in (8, 32, 128, 512):
        seen = base_gradients(max(1, questions // 32), min(questions, 32))
        shares = []
        for G, G_seen in zip(whole, seen):
            best = cosine_of_first_step(G, *lora.lora_ga_factors(G, 8))
            shares.append(cosine_of_first_step(G, *lora.lora_ga_factors(G_seen, 8)) / best)
        yield {"questions": questions, "share": round(statistics.median(shares), 4),
               "least": round(min(shares), 4), "most": round(max(shares), 4)}


# ==== The Riemannian preconditioner (2402.02347, §5 and theorem 7.4) ==============================

CONDITIONS = (1, 3, 10, 30, 100)
LARGER_CONDITIONS = (300, 1000)  # from the spectral start alone: from afar it takes too long
IMBALANCES = (1, 2, 4, 8, 16)
STEP_SIZES = (1, 0.7, 0.5, 0.35, 0.25, 0.12, 0.06, 0.03, 0.015, 0.008)
MOST = 10000  # steps


def target(condition):
    """Y (30, 20) of rank 4 and this condition number, as the factors U·√S and √S·Vᵀ."""
    generator = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(d, 4, dtype=torch.float64, generator=generator))[0]
            for d in (30, 20))
    S = torch.logspace(0, -math.log10(condition), 4, dtype=torch.float64)
    return U * S.sqrt(), S.sqrt()[:, None] * V.T


def near(condition, imbalance=1):
    """A start with BA = 0.81·Y; every split (t·B, A/t) begins at the same product."""
    B, A = target(condition)
    return 0.9 * B * imbalance, 0.9 * A / imbalance


def far(condition, seed):
    """A small random start (Jia et al., 2023)."""
    generator = torch.Generator().manual_seed(100 + seed)
    return [0.1 * torch.randn(factor.shape, dtype=torch.float64, generator=generator)
            for factor in target(condition)]


def iterations(condition, start, step_size, preconditioned, most, relu=False):
    """Gradient steps until the error is 1e-6 of the target -> their number, at most `most`.

    The loss is ½‖BA − Y‖², or with relu the mean over 500 normal x of ½‖relu(BAx) − relu(Yx)‖².
    """
    left, right = target(condition)
    x = torch.eye(20, dtype=torch.float64)
    if relu:
        x = torch.randn(500, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = x @ (left @ right).T
    y = torch.relu(y) if relu else y
    B, A = start
    for count in range(most):
        z = x @ (B @ A).T
        error = (torch.relu(z) if relu else z) - y
        if error.norm() < 1e-6 * y.norm():
            return count
        if not error.norm() < 1e3 * y.norm():
            break
        G = (error * (z > 0)).T @ x / len(x) if relu else error.T @ x  # (30, 20)
        grad_A, grad_B = B.T @ G, G @ A.T
        if preconditioned:
            grad_A, grad_B = precondition(grad_A, grad_B, A, B)
        A, B = A - step_size * grad_A, B - step_size * grad_B
    return most


def fewest(condition, start, sizes, most, relu=False):
    """The number of steps at the best step size, plain and preconditioned."""
    found = {}
    for name in ("plain", "preconditioned"):
        found[name] = most
        for size in sizes:
            found[name] = iterations(condition, start, size, name != "plain", found[name], relu)
    return found


def conditioning():
    for condition in CONDITIONS + LARGER_CONDITIONS:
        yield {"case": "near start", "value": condition,
               **fewest(condition, near(condition), STEP_SIZES, MOST)}
    for t in IMBALANCES:
        yield {"case": "unbalanced start", "value": t,
               **fewest(10, near(10, t), STEP_SIZES, MOST)}
    for condition in CONDITIONS:
        for seed in range(3):
            yield {"case": "random start", "value": condition,
                   **fewest(condition, far(condition, seed), STEP_SIZES, MOST)}


def network():
    sizes = [2 * size for size in STEP_SIZES[:6]]  # relu halves the gradient
    for condition in (1, 10, 100):
        yield {"condition": condition, **fewest(condition, near(condition), sizes, 3000, True)}


# ==== The verdicts ================================================================================

TABLES = (conditioning, toy, samples, widths, network, alignment, sizes, scales)  # longest first
WORDS = {True: "holds", False: "does not hold here", None: "in part"}
EXPECTED = {"one rate is stable at every width, preconditioned": None}  # every other claim holds


def column(rows, name, **where):
    return [row[name] for row in rows if all(row[key] == value for key, value in where.items())]


def slope(shares):
    """Of log share over log width, between the least width and the largest."""
    return math.log(shares[-1] / shares[0]) / math.log(WIDTHS[-1] / WIDTHS[0])


def with_slope(shares):
    return f"{shares[0]:.2f} to {shares[-1]:.2f}, n^{round(slope(shares), 2) + 0.0:.2f}"


def least_to_most(counts):
    return f"{min(counts):.0f}" if min(counts) == max(counts) else \
        f"{min(counts):.0f} to {max(counts):.0f}"


def only_plain_slows_down(plain, scaled):
    """From the least condition number to the largest."""
    return scaled[-1] <= 1.2 * min(scaled) and plain[-1] > 10 * plain[0]


def of_lora(sizes, scales):
    [size] = sizes
    yield ("LoRA trains about 10,000 times fewer parameters",
           f"GPT-3's shape, rank 4 in query and value: {size['ratio']:,.0f} times",
           size["ratio"] > 9000)
    apart = max(float(row["difference"]) for row in scales)
    yield ("s, A's start and the two rates can be traded for each other",
           f"difference {apart:.0e} after 50 steps of Adam", apart < 1e-10)


def of_lora_plus(widths, toy):
    shared, constant, linear, gradient, step = (column(widths, "share_of_B", rule=rule)
                                                for rule in RULES)
    yield ("with one rate B's part of the update vanishes as the width grows",
           f"{with_slope(shared)}, for n = 64 to 4096", shared[-1] < shared[0] / 4)
    yield ("a constant ratio delays that and does not prevent it", with_slope(constant),
           constant[-1] < constant[0] / 2 and constant[-1] > 2 * shared[-1])
    yield ("a ratio in proportion to n prevents it", with_slope(linear),
           max(linear) < 1.5 * min(linear))
    by_step, by_gradient = abs(slope(step)) < 0.1, abs(slope(gradient)) < 0.1
    yield ("one rate is stable at every width, preconditioned",
           f"with Adam's step preconditioned {with_slope(step)}; with the gradient "
           f"{with_slope(gradient)}", by_step if by_step == by_gradient else None)
    pairs = [min(losses, key=losses.get)
             for losses in (mean_losses(toy, step) for step in TOY_STEPS)]
    ratios = [lr_B / lr_A for lr_A, lr_B in pairs]
    yield ("in the toy the best pair of the mean has η_B ≫ η_A",
           f"η_B/η_A {ratios[0]:.0f} after 10 steps, {ratios[1]:.0f} after 200", min(ratios) > 10)


def of_lora_ga(alignment, samples):
    plain, ga, best = (column(alignment, "cosine", start=start)
                       for start in ("LoRA", "LoRA-GA", "best possible"))
    apart = max(abs(a - b) for a, b in zip(ga, best))
    yield ("LoRA-GA's first step is the best of rank 2r",
           f"cosine {ga[0]:.2f} at r = 1 (LoRA {plain[0]:.2f}), {ga[3]:.2f} at 8 ({plain[3]:.2f}); "
           f"differs from the best by {apart:.0e}", apart < 1e-3)
    shares, questions = column(samples, "share"), column(samples, "questions")
    yield ("a few samples give nearly the same first step",
           f"{shares[0]:.3f} of the best cosine from {questions[0]:.0f} questions, "
           f"{shares[-1]:.4f} from {questions[-1]:.0f}", shares[1] > 0.9)


def of_the_preconditioner(conditioning, network):
    def counts(rows, **where):
        return [column(rows, name, **where) for name in ("plain", "preconditioned")]

    plain, scaled = counts(conditioning, case="near start")
    yield ("preconditioned descent does not slow down with the condition number",
           f"{least_to_most(scaled)} steps for κ = 1 to 1000, plain {least_to_most(plain)}",
           only_plain_slows_down(plain, scaled))
    by_seeds = [counts(conditioning, case="random start", value=each) for each in CONDITIONS]
    plain, scaled = zip(*([statistics.median(seeds) for seeds in each] for each in by_seeds))
    yield ("hardly from a small random start",
           f"{least_to_most(scaled)} steps for κ = 1 to 100, plain {least_to_most(plain)}",
           only_plain_slows_down(plain, scaled))
    plain, scaled = counts(network)
    yield ("nor in a two-layer ReLU network",
           f"{least_to_most(scaled)} steps for κ = 1 to 100, plain {least_to_most(plain)}",
           only_plain_slows_down(plain, scaled))
    plain, scaled = counts(conditioning, case="unbalanced start")
    yield ("preconditioned descent does not depend on how BA is split",
           f"{least_to_most(scaled)} steps from (tB, A/t), t = 1 to 16, plain "
           f"{least_to_most(plain)}",
           max(scaled) == min(scaled) and max(plain) > 2 * min(plain))


def verdicts(sizes, scales, widths, toy, alignment, samples, conditioning, network):
    """(claim, its numbers, verdict) from the rows of the tables."""
    yield from of_lora(sizes, scales)
    yield from of_lora_plus(widths, toy)
    yield from of_lora_ga(alignment, samples)
    yield from of_the_preconditioner(conditioning, network)


def rows_of(table):
    rows = list(table())
    print(f"{table.__name__}: {len(rows)} rows", flush=True)
    return rows


def table_of(found):
    return compare.markdown(["claim", "result"], [[claim, result] for claim, result, _ in found])


def main():
    command_parser(__doc__, "python -m experiments.claims").parse_args()
    tables = {}
    with ProcessPoolExecutor(initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for table, rows in zip(TABLES, pool.map(rows_of, TABLES)):
            tables[table.__name__] = rows
            write_csv(RESULTS / f"{table.__name__}.csv", list(rows[0]), rows)
    found = list(verdicts(**tables))
    for claim, result, holds in found:
        print(f"\n{claim}: {WORDS[holds]}\n    {result}")
    question.put("claims", table_of(found))
    changed = [claim for claim, _, holds in found if holds != EXPECTED.get(claim, True)]
    if changed:
        sys.exit("not as before: " + "; ".join(changed))


if __name__ == "__main__":
    run_command(main)
