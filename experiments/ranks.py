"""LoRA §7.2: is a very small rank enough? s = 1 at every rank, at least three learning rates each.

With s = 1 a larger rank wants a smaller rate, so that the grid follows it.
"""
from experiments import compare, question

RATES = {1: (5e-3, 1e-2, 2e-2), 8: (2.5e-3, 5e-3, 1e-2),
         128: (6.25e-4, 1.25e-3, 2.5e-3, 5e-3)}
DATA = {"math": ("", 1), "code": (question.ON_CODE, 2)}  # on code twice these rates
ALWAYS = {"math: r 128": (6.25e-4,)}  # learns as much there as rank 8, for less forgotten
LEVELS = {"math": (0.9, "exact match"), "code": (1.95, "loss")}  # what most ranks learn
VARIANTS = {
    f"{data}: r {rank}": question.Variant(
        "lora", tuple(times * lr for lr in rates),
        f"{question.flag('rank', rank, 8)} {flags}", data=data,
        always=ALWAYS.get(f"{data}: r {rank}", ()))
    for data, (flags, times) in DATA.items() for rank, rates in RATES.items()}


def text(found):
    tables = []
    for data, (level, told) in LEVELS.items():
        header = [data, "lr", told, "forgotten, nats", f"forgotten at {told} {level}"]
        tables.append(compare.markdown(header, [
            [f"r {rank}", *compare.trade(compare.at_rates(found, f"{data}: r {rank}"), level)]
            for rank in RATES]))
    return "\n\n".join(tables)


QUESTION = question.Question("ranks", VARIANTS, text=text)

if __name__ == "__main__":
    question.ask(QUESTION)
