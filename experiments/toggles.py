"""All toggles together: do LoRA-GA, a ratio and the preconditioner add up?

LoRA-One (arXiv 2502.01235) has a start and a preconditioner much like these together; all three
nobody has, as far as we know.

Each pair and all three, beside each alone, at the best of their learning rates. The ratio is 4:
what the paper found for B = 0, and LoRA-GA's factors start alike.
"""
from experiments import question

RATES = (5e-4, 1e-3, 2e-3)
LOWER = (1.25e-4, 2.5e-4, 5e-4, 1e-3)  # B's rate is four times as large
VARIANTS = {
    "LoRA-GA": question.Variant("loraga", RATES),
    "LoRA+": question.Variant("loraplus", (1e-3, 2e-3, 4e-3)),
    "preconditioned": question.Variant("riemannian", (2.5e-3, 5e-3, 1e-2)),
    "LoRA-GA, ratio 4": question.Variant("loraga", LOWER, "--lr_ratio 4"),
    "LoRA-GA, preconditioned": question.Variant("loraga", RATES, "--precondition"),
    "ratio 4, preconditioned": question.Variant(
        "riemannian", (1.25e-3, 2.5e-3, 5e-3), "--lr_ratio 4"),
    "all three": question.Variant("loraga", LOWER, "--precondition --lr_ratio 4"),
}


QUESTION = question.Question("toggles", VARIANTS)

if __name__ == "__main__":
    question.ask(QUESTION)
