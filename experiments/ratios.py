"""LoRA+: the ratio of B's learning rate to A's, each at the best of three rates of A.

Rates are A's. From ratio to ratio they move by the square root of two for every doubling, between
keeping A's rate and keeping B's, and are multiples of LoRA's own.
"""
from experiments import question

RATES = {1: (2.5e-3, 5e-3, 1e-2), 2: (1.25e-3, 2.5e-3, 5e-3), 4: (1.25e-3, 2.5e-3, 5e-3),
         8: (1e-3, 2e-3, 4e-3), 16: (1e-3, 2e-3, 4e-3), 64: (2.5e-4, 5e-4, 1e-3)}
VARIANTS = {
    f"ratio {ratio}": question.Variant("lora", rates) if ratio == 1 else question.Variant(
        "loraplus", rates, "" if ratio == 16 else f"--lr_ratio {ratio}")
    for ratio, rates in RATES.items()}


QUESTION = question.Question("ratios", VARIANTS)

if __name__ == "__main__":
    question.ask(QUESTION)
