"""How many steps does each of experiments.starts' eight starts need to reach a training loss?

Each at two learning rates, or one where they agree: the one with which the first seed began fastest
there, and the one with which it ended lowest. What is said of a start is at the better of the two.
"""
import statistics

from experiments import compare, question, starts, sweep

RATES = {
    "sgd": {
        "LoRA's: A small and random, B = 0": (0.3,),
        "A large and random, B = 0": (0.3,),
        "A along the gradient, B = 0": (0.1,),
        "A = 0, B along the gradient": (0.1, 0.3),
        "both Gaussian, large": (0.3,),
        "both orthonormal at random, large": (0.3,),
        "both along the gradient, small": (0.1, 0.3),
        "both along the gradient, large: LoRA-GA": (0.1,),
    },
    "adamw": {
        "LoRA's: A small and random, B = 0": (8e-3, 4e-3),
        "A large and random, B = 0": (8e-3, 4e-3),
        "A along the gradient, B = 0": (4e-3, 2e-3),
        "A = 0, B along the gradient": (4e-3, 8e-3),
        "both Gaussian, large": (8e-3, 2e-3),
        "both orthonormal at random, large": (4e-3,),
        "both along the gradient, small": (4e-3,),
        "both along the gradient, large: LoRA-GA": (2e-3, 1e-3),
    },
}
LEVELS = {"sgd": (1.5, 1.1), "adamw": (1.0, 0.7)}  # nats per token of the sums' answers
VARIANTS = {f"{optimizer}; {start}": starts.variant(optimizer, start, rates, evaluations=1)
            for optimizer, of_starts in RATES.items() for start, rates in of_starts.items()}


def steps_to(result, level):
    """The end of the first ten steps whose mean training loss is below a level; inf if none is."""
    blocks = enumerate(result["losses"], 1)
    return next((sweep.BLOCK * count for count, loss in blocks if loss <= level), float("inf"))


def lowest(rates, of_result, form):
    """A cell: the lowest median of all rates, the seeds' range, and the rate."""
    numbers = {lr: [of_result(result) for result in results] for lr, results in rates.items()}
    lr = min(numbers, key=lambda lr: statistics.median(numbers[lr]))
    cell = compare.spread([{"number": number} for number in numbers[lr]], "number", form)
    return f"{cell}, lr {lr:g}"


def row(start, rates, levels):
    early = lowest(rates, lambda result: result["early"], "{:.3f}")
    steps = [lowest(rates, lambda result: steps_to(result, level), "{:.0f}") for level in levels]
    return [start, early, *steps]


def text(found):
    tables = []
    for optimizer, levels in LEVELS.items():
        header = [f"{optimizer}; start", "mean training loss of steps 1 to 50",
                  *(f"steps to {level}" for level in levels)]
        rows = [row(start, compare.at_rates(found, f"{optimizer}; {start}"), levels)
                for start in starts.STARTS]
        tables.append(compare.markdown(header, rows))
    return "\n\n".join(tables)


QUESTION = question.Question("arrivals", VARIANTS, every_rate=True, metric="loss", text=text)

if __name__ == "__main__":
    question.ask(QUESTION)
