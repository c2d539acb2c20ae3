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


def text(found):
    """A row a method, a column a pair: the best rate, what was learned and forgotten there."""
    lines = ["| method | " + " | ".join(f"betas {pair}" for pair in PAIRS) + " |",
             "|---" * (len(PAIRS) + 1) + "|"]
    for method in compare.METHODS:
        cells = [method]
        for pair in PAIRS:
            rates = compare.at_rates(found, f"{method}, {pair}")
            if not rates:
                cells.append("not run")
                continue
            lr = compare.best_rate(rates)
            cells.append(f"{compare.median(rates[lr], 'learned'):.1%} for "
                         f"{compare.median(rates[lr], 'forgotten'):.2f} nats "
                         f"(lr {lr:g}, seeds: {len(rates[lr])})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


QUESTION = question.Question("betas", VARIANTS, text=text)

if __name__ == "__main__":
    question.ask(QUESTION)
