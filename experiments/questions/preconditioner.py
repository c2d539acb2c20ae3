"""The Riemannian preconditioner (arXiv 2402.02347): learning rates, and Adam's memory."""
from experiments import compare, plot
from experiments.question import Question, Variant

# ==== Is preconditioned training robust to the learning rate? =====================================

RATES = {"sgd": (0.03, 0.1, 0.3, 1, 3, 10, 30), "adamw": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1)}
CASES = [(optimizer, rank) for optimizer in RATES for rank in (1, 8)]
METHODS = {"lora": "plain", "riemannian": "preconditioned"}
TITLES = {"sgd": "gradient descent", "adamw": "AdamW"}
NEAR = 1.25  # a rate is usable if its loss is at most so many times the best
robustness = {
    f"{optimizer}, r {rank}, {name}": Variant(
        method, RATES[optimizer], f"--rank {rank} --steps 200 --eval_interval 200",
        module="experiments.variant --optimizer sgd" if optimizer == "sgd" else "")
    for optimizer, rank in CASES for method, name in METHODS.items()}


def losses_of(found, variant):
    return {lr: compare.median(results, "loss")
            for lr, results in compare.at_rates(found, variant).items()}


def usable(losses, limit):
    """The factor between the outermost rates around the best one whose loss is at most `limit`.

    "≥" where the rates that were tried end before the usable ones do.
    """
    rates = list(losses)
    low = high = rates.index(min(losses, key=losses.get))
    while low > 0 and losses[rates[low - 1]] <= limit:
        low -= 1
    while high + 1 < len(rates) and losses[rates[high + 1]] <= limit:
        high += 1
    at_least = "≥ " if low == 0 or high + 1 == len(rates) else ""
    return f"{at_least}× {rates[high] / rates[low]:.0f}"


def robustness_table(found):
    rows = []
    for optimizer, rank in CASES:
        tried = {name: losses_of(found, f"{optimizer}, r {rank}, {name}")
                 for name in METHODS.values()}
        higher = max(min(losses.values()) for losses in tried.values())
        bests = [f"{min(losses.values()):.3f}" for losses in tried.values()]
        ranges = [usable(losses, NEAR * higher) for losses in tried.values()]
        rows.append([f"{optimizer}, r {rank}", *bests, *ranges])
    header = ["optimizer, rank", "best loss, plain", "preconditioned", "usable rates, plain",
              "preconditioned"]
    return compare.markdown(header, rows)


def draw_robustness(found):
    figure, panels = plot.new_figure(16, 4.5, panels=4)
    for panel, (optimizer, rank) in zip(panels, CASES):
        for method, name in METHODS.items():
            color, line, marker = compare.LOOKS[method]
            rates = compare.at_rates(found, f"{optimizer}, r {rank}, {name}")
            losses = [min(compare.median(results, "loss"), 4) for results in rates.values()]
            panel.plot(list(rates), losses, color=color, linestyle=line, marker=marker, label=name)
        panel.set(xscale="log", ylim=(0.5, 4.1), xlabel="learning rate",
                  title=f"{TITLES[optimizer]}, rank {rank}")
    panels[0].set_ylabel("loss after 200 steps (4: or more)")
    plot.name_lines(figure, panels[0])
    return figure


# ==== Why does it learn so little with Adam's β₂ = 0.999? =========================================

LONG = "--betas 0.9 0.999"
TWO = (5e-3, 1e-2)
GA = (1e-3, 2e-3)
memory = {
    "β₂ 0.95": Variant("riemannian", TWO),
    "β₂ 0.99": Variant("riemannian", TWO, "--betas 0.9 0.99"),
    "β₂ 0.999": Variant("riemannian", TWO, LONG),
    "β₂ 0.999, δ 0.01": Variant("riemannian", TWO, f"{LONG} --damping 0.01"),
    "β₂ 0.999, δ 1": Variant("riemannian", TWO, f"{LONG} --damping 1"),
    "β₂ 0.999, LoRA-GA's start": Variant("loraga", GA, f"{LONG} --precondition"),
    "β₂ 0.999, random start with B ≠ 0": Variant("loraga", GA, f"{LONG} --precondition",
                                                 "experiments.variant --start gaussian"),
    "β₂ 0.999, no preconditioner": Variant("lora", TWO, LONG),
}


# ==== Does preconditioning Adam's step in the gradient's place cure that? =========================

# The proof of theorem 4.1 does so. At B = 0 and a small δ the first step of A is then huge, at any
# learning rate, so that larger δ are tried too.
STEPS = "experiments.variant --optimizer preconditioned-steps"
adam_steps = {
    "δ 1e-6": Variant("riemannian", (3e-4, 1e-3), LONG, STEPS),
    "δ 0.01": Variant("riemannian", (1e-3, 5e-3), f"{LONG} --damping 0.01", STEPS),
}


QUESTIONS = (
    Question("robustness", robustness, robustness_table, every_rate=True, metric="loss",
             draw=draw_robustness),
    Question("memory", memory, "variant"),
    Question("adam_steps", adam_steps, "Adam's step preconditioned, β₂ 0.999"),
)
