"""LoRA-GA's eight starts again: how many steps to a training loss, three seeds?

Each at two learning rates of experiments.starts: the one with which the first seed began fastest,
and the one with which it ended lowest. What is said of a start is at the better of the two.
"""
import statistics

from experiments import compare, question, starts, sweep

RATES = {  # with gradient descent, with AdamW
    "LoRA's: A small and random, B = 0": ((0.3,), (8e-3, 4e-3)),
    "A large and random, B = 0": ((0.3,), (8e-3, 4e-3)),
    "A along the gradient, B = 0": ((0.1,), (4e-3, 2e-3)),
    "A = 0, B along the gradient": ((0.1, 0.3), (4e-3, 8e-3)),
    "both Gaussian, large": ((0.3,), (8e-3, 2e-3)),
    "both orthonormal at random, large": ((0.3,), (4e-3,)),
    "both along the gradient, small": ((0.1, 0.3), (4e-3,)),
    "both along the gradient, large: LoRA-GA": ((0.1,), (2e-3, 1e-3)),
}
LEVELS = {"sgd": (1.5, 1.1), "adamw": (1.0, 0.7)}  # nats per token of the sums' answers


def variant(optimizer, start):
    rates = dict(zip(starts.OPTIMIZERS, RATES[start]))[optimizer]
    return starts.variant(optimizer, start, rates, evaluations=1)


VARIANTS = {f"{optimizer}; {start}": variant(optimizer, start)
            for optimizer in starts.OPTIMIZERS for start in starts.STARTS}


def steps_to(result, level):
    """The end of the first ten steps whose mean training loss is below a level; inf if none is."""
    blocks = enumerate(result["losses"], 1)
    return next((sweep.BLOCK * count for count, loss in blocks if loss <= level), float("inf"))


def soonest(rates, of_result, form):
    """A cell: the least median of the rates, the seeds' range, and the rate."""
    numbers = {lr: list(map(of_result, results)) for lr, results in rates.items()}
    lr = min(numbers, key=lambda lr: statistics.median(numbers[lr]))
    cell = compare.spread([{"it": number} for number in numbers[lr]], "it", form)
    return f"{cell}, lr {lr:g}"


def text(found):
    tables = []
    for optimizer, levels in LEVELS.items():
        rows = []
        for start in starts.STARTS:
            rates = compare.at_rates(found, f"{optimizer}; {start}")
            cells = [soonest(rates, lambda result, level=level: steps_to(result, level), "{:.0f}")
                     for level in levels]
            rows.append([start, soonest(rates, lambda result: result["early"], "{:.3f}"), *cells])
        header = [f"{optimizer}; start", "mean training loss of steps 1 to 50",
                  *(f"steps to {level}" for level in levels)]
        tables.append(compare.markdown(header, rows))
    return "\n\n".join(tables)


QUESTION = question.Question("arrivals", VARIANTS, every_rate=True, metric="loss", text=text)

if __name__ == "__main__":
    question.ask(QUESTION)
