"""Does the advice from `math` hold elsewhere? Its rates, unchanged, on data that nobody tuned on.

A file of pairs (E2E's form), and Python's code, each also with half, twice and four times the rates
as a check, on code with a quarter, and full fine-tuning with less. Batches of 8, which have as many
tokens as the 32 sums of `math`.
"""
import train
from experiments import compare, question

PAIRS = "--steps 200 --eval_interval 50 --batch_size 8"
DATA = {  # name: what to train on, how, and the learning rates, times those of `math`
    "pairs": ("data/e2e_sample.jsonl", PAIRS, (0.5, 1, 2, 4)),
    "code": ("code", question.ON_CODE, (0.25, 0.5, 1, 2, 4)),
}
FULL = (0.0625, 0.125, 0.25, 0.5, 1, 2, 4)
VARIANTS = {
    f"{name}: {compare.NAMES[method]}": question.Variant(
        method, [train.PRESETS[method]["lr"] * factor
                 for factor in (FULL if method == "full" else factors)],
        flags, data=data, own=train.PRESETS[method]["lr"])
    for name, (data, flags, factors) in DATA.items() for method in compare.METHODS}


def text(found):
    """For each, at the rates of `math` and at the best: does the advice cost anything?"""
    lines = ["| data: method | loss at math's rate | best loss | at × math's rate |",
             "|---|---|---|---|"]
    for name, variant in VARIANTS.items():
        rates = compare.at_rates(found, name)
        own = train.PRESETS[variant.method]["lr"]
        best = compare.best_rate(rates)
        lines.append(f"| {name} | {compare.spread(rates[own], 'loss', '{:.3f}')} | "
                     f"{compare.spread(rates[best], 'loss', '{:.3f}')} | {best / own:g} |")
    return "\n".join(lines)


QUESTION = question.Question("transfer", VARIANTS, metric="loss", text=text)

if __name__ == "__main__":
    question.ask(QUESTION)
