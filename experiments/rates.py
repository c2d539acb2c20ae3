"""Why is LoRA's best learning rate so near to full fine-tuning's here, and not ten times as large?

With rate η, a step of Adam on W changes what a layer computes for an input x that it has just seen
by η·Σ|xₖ|, since every entry moves by η with the sign of x. In LoRA's first steps B moves alone, and
changes it by η·s·Σ|(Ax)ⱼ|, smaller by √3·d_in/(s·r) (A is uniform in ±1/√d_in): 55 here, and more
in the MLP's second layer. As B grows, A's steps count as well, η·Σ|xₖ|·s·Σ|Bᵢⱼ|, as much as full's
once B's entries are near 1/(s·r). If that is why LoRA's best rate is so low, then LoRA's rate over
full's must fall with the number of steps, and stay large where A is frozen. Were it a matter of the
task, it would be the same in all.
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
    return "\n".join(lines)


QUESTION = question.Question("rates", VARIANTS, metric="loss", text=text)

if __name__ == "__main__":
    question.ask(QUESTION)
