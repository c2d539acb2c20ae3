"""Why is LoRA's best learning rate so near to full fine-tuning's here, and not ten times as large?

With rate η, a step of Adam on W changes what a layer computes for an input x that it has just seen
by η·Σ|xₖ|, since every entry moves by η with the sign of x. A step on LoRA's B changes it by
η·s·Σ|(Ax)ⱼ|, smaller by √3·d_in/(s·r) (A is uniform in ±1/√d_in): 55 here, and more in the MLP's
second layer. But a step on A changes it by η·Σ|xₖ|·s·|Σ ±Bᵢⱼ|, which is more than B's part once B's
entries are above 1/(√3·d_in), after a few steps. If that is why LoRA's best rate is so low, then it
must be far larger where A is frozen, by 55 over full's in a short run, and by 222 at rank 2 and 14
at rank 32 (s = 1). These two were predicted before they were run; the rest was not.
"""
from experiments import compare, question

FULL = (7.5e-4, 1.5e-3, 3e-3, 6e-3)
LORA = (2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2)
FROZEN = (2e-2, 4e-2, 8e-2, 0.16)
STEPS = (100, 300, 1000)
KINDS = {"full": ("full", FULL, ""), "LoRA": ("lora", LORA, ""),
         "LoRA, A frozen": ("lora", FROZEN, "experiments.variant --freeze A")}
VARIANTS = {
    f"{kind}, {steps}": question.Variant(method, rates, f"--steps {steps}" * (steps != 1000),
                                         module=module)
    for steps in STEPS for kind, (method, rates, module) in KINDS.items()}
FROZEN_AT = {2: (8e-2, 0.16, 0.32, 0.64), 32: (1e-2, 2e-2, 4e-2, 8e-2)}  # by rank
for rank, rates in FROZEN_AT.items():
    VARIANTS[f"LoRA, A frozen, r {rank}"] = question.Variant(
        "lora", rates, f"--steps 100 --rank {rank}", module="experiments.variant --freeze A")


def text(found):
    lines = ["| steps | " + " | ".join(f"{kind}: best rate, loss there" for kind in KINDS)
             + " | LoRA's rate / full's | with A frozen |", "|---" * 6 + "|"]
    for steps in STEPS:
        cells, rates = [str(steps)], []
        for kind in KINDS:
            lr, results = compare.best(compare.at_rates(found, f"{kind}, {steps}"))
            cells.append(f"{lr}, {compare.spread(results, 'loss', '{:.3f}')}")
            rates.append(results[0]["lr"])
        cells += [f"{lr / rates[0]:.1f}" for lr in rates[1:]]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| A frozen, 100 steps | best rate, loss there | over full's | predicted |",
              "|---" * 4 + "|"]
    for rank, name in {2: "LoRA, A frozen, r 2", 8: "LoRA, A frozen, 100",
                       32: "LoRA, A frozen, r 32"}.items():
        rates = compare.at_rates(found, name)
        if not rates:
            continue
        lr, results = compare.best(rates)
        quotient = results[0]["lr"] / compare.best_rate(compare.at_rates(found, "full, 100"))
        lines.append(f"| r {rank} | {lr}, {compare.spread(results, 'loss', '{:.3f}')} | "
                     f"{quotient:.0f} | {3 ** 0.5 * 256 / rank:.0f} |")
    return "\n".join(lines)


QUESTION = question.Question("rates", VARIANTS, metric="loss", text=text)

if __name__ == "__main__":
    question.ask(QUESTION)
