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
    f"{kind}, {steps}": question.Variant(method, rates, question.flag("steps", steps, 1000),
                                         module=module)
    for steps in STEPS for kind, (method, rates, module) in KINDS.items()}
FROZEN_AT = {2: (8e-2, 0.16, 0.32, 0.64), 32: (1e-2, 2e-2, 4e-2, 8e-2)}  # by rank
for rank, rates in FROZEN_AT.items():
    VARIANTS[f"LoRA, A frozen, r {rank}"] = question.Variant(
        "lora", rates, f"--steps 100 --rank {rank}", module="experiments.variant --freeze A")


def text(found):
    def best(name):
        """-> the best rate, and a cell with it and the loss there."""
        lr, results = compare.best(compare.at_rates(found, name))
        return results[0]["lr"], f"{lr}, {compare.spread(results, 'loss', '{:.3f}')}"

    rows = []
    for steps in STEPS:
        (full, *others), cells = zip(*(best(f"{kind}, {steps}") for kind in KINDS))
        rows.append([str(steps), *cells, *(f"{lr / full:.1f}" for lr in others)])
    header = ["steps", *(f"{kind}: best rate, loss there" for kind in KINDS),
              "LoRA's rate / full's", "with A frozen"]
    by_steps = compare.markdown(header, rows)

    full, _ = best("full, 100")
    rows = []
    for rank, name in {2: "LoRA, A frozen, r 2", 8: "LoRA, A frozen, 100",
                       32: "LoRA, A frozen, r 32"}.items():
        lr, cell = best(name)
        rows.append([f"r {rank}", cell, f"{lr / full:.0f}", f"{3 ** 0.5 * 256 / rank:.0f}"])
    header = ["A frozen, 100 steps", "best rate, loss there", "over full's", "predicted"]
    return f"{by_steps}\n\n{compare.markdown(header, rows)}"


QUESTION = question.Question("rates", VARIANTS, metric="loss", text=text)

if __name__ == "__main__":
    question.ask(QUESTION)
