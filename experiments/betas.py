"""Does Adam's pair of betas decide as much as the method? Each method's own rates under each pair.

Three pairs: torch's default, the one that language models are trained with, and the one of the
preconditioner's authors.
"""
import train
from experiments import compare, question

PAIRS = ("0.9 0.999", "0.9 0.95", "0.7 0.8")
VARIANTS = {
    f"{method}, {pair}": question.Variant(
        method, [train.PRESETS[method]["lr"] * factor for factor in compare.AROUND],
        "" if pair == "0.9 0.95" else f"--betas {pair}")
    for pair in PAIRS for method in compare.METHODS}


if __name__ == "__main__":
    question.ask("betas", VARIANTS)
