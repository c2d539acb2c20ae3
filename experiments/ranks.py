"""LoRA §7.2: is a very small rank enough? s = 1 at every rank, at least three learning rates each.

With s = 1 a larger rank wants a smaller rate, so that the grid follows it.
"""
import statistics

import curves
from experiments import compare, question

RATES = {1: (5e-3, 1e-2, 2e-2), 2: (5e-3, 1e-2, 2e-2), 4: (2.5e-3, 5e-3, 1e-2),
         8: (2.5e-3, 5e-3, 1e-2), 32: (1.25e-3, 2.5e-3, 5e-3),
         128: (6.25e-4, 1.25e-3, 2.5e-3, 5e-3)}
DATA = {"math": ("", 1), "code": (question.ON_CODE, 2)}  # on code twice these rates
ALWAYS = {"math: r 128": (6.25e-4,), "code: r 32": (2.5e-3,)}  # these forget less at a level
LEVELS = {"math": (0.9, "exact match"), "code": (1.95, "loss")}  # what rank 8 and more learn
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


def draw(found):
    """A dot a seed, each rank at its best rate, and a line through the medians."""
    figure, panels = curves.new_figure(12, 4.5, panels=2)
    for (data, (_, metric)), panel, (color, _, marker) in zip(LEVELS.items(), panels, curves.LOOKS):
        learned = {}
        for rank in RATES:
            _, results = compare.best(compare.at_rates(found, f"{data}: r {rank}"))
            learned[rank] = [result["learned"] for result in results]
        medians = list(map(statistics.median, learned.values()))
        panel.plot(list(learned), medians, color=color, marker=marker, markersize=9)
        for rank, seeds in learned.items():
            panel.plot([rank] * len(seeds), seeds, ".", color=color)
        panel.set(xscale="log", xticks=list(RATES), xticklabels=list(RATES), xlabel="rank",
                  ylabel=curves.learned(metric), title=data)
        panel.minorticks_off()
    curves.in_percent(panels[0])
    return figure


QUESTION = question.Question("ranks", VARIANTS, text=text, draw=draw)

if __name__ == "__main__":
    question.ask(QUESTION)
