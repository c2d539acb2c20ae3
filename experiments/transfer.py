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
LOWER = (0.0625, 0.125, 0.25, 0.5, 1, 2, 4)  # for full fine-tuning, which forgets less with these
ALWAYS = {"full": (0.0625, 0.125, 0.25, 1), "loraplus": (0.5, 1)}  # what every seed has, or else 1


def variant(data, flags, method, factors):
    lr = train.PRESETS[method]["lr"]
    factors = LOWER if method == "full" else factors
    return question.Variant(method, [lr * factor for factor in factors], flags, data=data,
                            always=[lr * factor for factor in ALWAYS.get(method, (1,))])


VARIANTS = {f"{name}: {compare.NAMES[method]}": variant(data, flags, method, factors)
            for name, (data, flags, factors) in DATA.items() for method in compare.METHODS}


def text(found):
    """For each, at the rates of `math` and at the best: does the advice cost anything?"""
    lines = []
    for name in DATA:
        tried = {method: compare.at_rates(found, f"{name}: {compare.NAMES[method]}")
                 for method in compare.METHODS}
        level = max(compare.median(rates[compare.best_rate(rates)], "loss")
                    for rates in tried.values())  # what all have learned
        lines += [f"| {name} | loss at math's rate | best loss | at × math's rate | forgotten, "
                  f"nats | forgotten at loss {level:.3f} |", "|---|---|---|---|---|---|"]
        for method, rates in tried.items():
            own, best = train.PRESETS[method]["lr"], compare.best_rate(rates)
            least, lr = compare.least_forgotten(rates, level)
            cells = (compare.NAMES[method], compare.spread(rates[own], "loss", "{:.3f}"),
                     compare.spread(rates[best], "loss", "{:.3f}"), f"{best / own:g}",
                     compare.spread(rates[best], "forgotten", "{:.2f}"),
                     f"{least:.2f} (lr {lr:g})")
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


QUESTION = question.Question("transfer", VARIANTS, metric="loss", text=text)

if __name__ == "__main__":
    question.ask(QUESTION)
