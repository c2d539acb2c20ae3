"""Does the advice from `math` hold elsewhere? Its rates, unchanged, on data that nobody tuned on.

A file of pairs (E2E's form), Shakespeare's plays and Python's code, each also with half, twice and
four times the rates, to see what tuning gains, on code with a quarter, and full fine-tuning with
less. Batches of 8, which have as many tokens as the 32 sums of `math`. The plays are a download,
kept in data/cache.
"""
import train
from experiments import compare, question

SHORT = "--steps 200 --eval_interval 50 --batch_size 8"
DATA = {  # name: what to train on, how, and the learning rates, times those of `math`
    "pairs": ("data/e2e_sample.jsonl", SHORT, (0.5, 1, 2, 4)),
    "plays": ("shakespeare", SHORT, (0.5, 1, 2, 4)),
    "code": ("code", question.ON_CODE, (0.25, 0.5, 1, 2, 4)),
}
LOWER = (0.0625, 0.125, 0.25, 0.5, 1, 2, 4)  # for full fine-tuning, which forgets less with these
# Every seed has these, times the rate of `math`, and the others that alone
ALWAYS = {"full": (1, 0.25, 0.125, 0.0625), "loraplus": (1, 0.5)}


def variant(data, flags, method, factors):
    lr = train.PRESETS[method]["lr"]
    factors = LOWER if method == "full" else factors
    return question.Variant(method, [lr * factor for factor in factors], flags, data=data,
                            always=[lr * factor for factor in ALWAYS.get(method, (1,))])


VARIANTS = {f"{name}: {compare.NAMES[method]}": variant(data, flags, method, factors)
            for name, (data, flags, factors) in DATA.items() for method in compare.METHODS}


def text(found):
    """For each, at the rates of `math` and at the best: does the advice cost anything?"""
    tables = []
    for name in DATA:
        tried = {method: compare.at_rates(found, f"{name}: {compare.NAMES[method]}")
                 for method in compare.METHODS}
        if not any(tried.values()):
            continue  # --quick leaves the plays out
        level = compare.common_level(tried)
        rows = []
        for method, rates in tried.items():
            own, best = train.PRESETS[method]["lr"], compare.best_rate(rates)
            _, learned, forgotten, at_level = compare.trade(rates, level)
            rows.append([compare.NAMES[method], compare.spread(rates[own], "loss", "{:.3f}"),
                         learned, f"{best / own:g}", forgotten, at_level])
        header = [name, "loss at math's rate", "at its own rate", "× math's", "forgotten, nats",
                  f"forgotten at loss {level:.3f}"]
        tables.append(compare.markdown(header, rows))
    return "\n\n".join(tables)


QUESTION = question.Question("transfer", VARIANTS, metric="loss", text=text)

if __name__ == "__main__":
    question.ask(QUESTION)
