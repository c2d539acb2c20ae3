"""Why is LoRA's best learning rate so near to full fine-tuning's here, and not ten times as large?

A step of Adam with rate η moves each entry of W by η in full fine-tuning. In LoRA's first steps it
moves B alone, so an entry of s·BA by about s·√r·η/√(3 d_in), a tenth of η here: the factor of ten
of "LoRA Without Regret". But each entry of A moves as well, and s·B ΔA is as large as full's step
once B's entries are near 1/√r. If that is the reason, then the factor must be largest in short
runs, and must stay where A is frozen. Were it a matter of the task, it would be the same in all.
"""
from experiments import compare, question

FULL = (7.5e-4, 1.5e-3, 3e-3, 6e-3)
LORA = (5e-3, 1e-2, 2e-2, 4e-2)
FROZEN = (1e-2, 2e-2, 4e-2, 8e-2)
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
