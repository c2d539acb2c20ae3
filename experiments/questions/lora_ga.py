"""LoRA-GA (arXiv 2407.05000): is it the direction of the start or its size, and how many samples?"""
from experiments import compare, question, sweep
from experiments.question import Question, Variant

# ==== Direction or size? ==========================================================================

# All starts have LoRA-GA's scale s. "Large" factors are as large as LoRA-GA's, "small" ones as
# LoRA's A. Flags of experiments.variant, flags of train.py, and the rates at which the first seed
# began fastest and ended lowest: gradient descent, then AdamW.
STARTS = {
    "LoRA's: A small and random, B = 0": ("", "--init kaiming", (0.3,), (8e-3, 4e-3)),
    "A large and random, B = 0": ("--start large-A", "", (0.3,), (8e-3, 4e-3)),
    "A along the gradient, B = 0": ("--start aligned-A", "", (0.1,), (4e-3, 2e-3)),
    "A = 0, B along the gradient": ("--start aligned-B", "", (0.1, 0.3), (4e-3, 8e-3)),
    "both Gaussian, large": ("--start gaussian", "", (0.3,), (8e-3, 2e-3)),
    "both orthonormal at random, large": ("--start orthonormal", "", (0.3,), (4e-3,)),
    "both along the gradient, small": ("--start small", "", (0.1, 0.3), (4e-3,)),
    "both along the gradient, large: LoRA-GA": ("", "", (0.1,), (2e-3, 1e-3)),
}
OPTIMIZERS = {  # its flag, learning rates, steps
    "sgd": ("--optimizer sgd", (0.03, 0.1, 0.3, 1), 100),
    "adamw": ("", (5e-4, 1e-3, 2e-3, 4e-3, 8e-3), 300),
}
LEVELS = {"sgd": 1.1, "adamw": 0.7}  # training losses to reach


def start_variant(optimizer, start, rates, evaluations):
    of_optimizer, _, steps = OPTIMIZERS[optimizer]
    of_start, flags, *_ = STARTS[start]
    own = " ".join(filter(None, (of_optimizer, of_start)))
    return Variant("loraga", rates, f"{flags} --steps {steps} --eval_interval {steps // evaluations}",
                   module=f"experiments.variant {own}" if own else "")


starts = {f"{optimizer}; {start}": start_variant(optimizer, start, OPTIMIZERS[optimizer][1], 2)
          for optimizer in OPTIMIZERS for start in STARTS}
arrivals = {f"{optimizer}; {start}": start_variant(optimizer, start, rates, 1)
            for start, (_, _, *both) in STARTS.items() for optimizer, rates in zip(OPTIMIZERS, both)}


def start_table(found):
    """The held-out loss at the end, at each start's best rate."""
    rows = []
    for start in STARTS:
        row = [start]
        for optimizer in OPTIMIZERS:
            lr, results = question.best(compare.at_rates(found, f"{optimizer}; {start}"))
            row += [lr, question.short(results)]
        rows.append(row)
    return compare.markdown(["start", "gradient descent: lr", "loss after 100 steps", "AdamW: lr",
                             "loss after 300 steps"], rows)


def arrival_table(found):
    """How fast each start begins, at whichever of its rates does so best."""
    rows = []
    for start in STARTS:
        row = [start]
        for optimizer, level in LEVELS.items():
            rates = compare.at_rates(found, f"{optimizer}; {start}").values()
            early = [[result["early"] for result in results] for results in rates]
            steps = [[steps_below(result, level) for result in results] for results in rates]
            row.append(question.spread(min(early, key=sorted_median), "{:.3f}"))
            row.append(question.spread(min(steps, key=sorted_median), "{:.0f}"))
        rows.append(row)
    header = ["start"]
    for optimizer, level in (("gradient descent", 1.1), ("AdamW", 0.7)):
        header += [f"{optimizer}: loss of steps 1–50", f"steps to {level}"]
    return compare.markdown(header, rows)


def sorted_median(values):
    return sorted(values)[len(values) // 2]


def steps_below(result, level):
    """The end of the first ten steps whose mean training loss is below a level."""
    blocks = [(sweep.BLOCK * (i + 1), loss) for i, loss in enumerate(result["losses"])]
    return question.steps_to(blocks, level, "loss")


# ==== How many samples? ===========================================================================

gradients = {
    "32": Variant("loraga", (1e-3,), module="experiments.variant --gradient_batches 1"),
    "128": Variant("loraga", (1e-3,)),
    "2048": Variant("loraga", (1e-3,), module="experiments.variant --gradient_batches 64"),
}


def gradient_table(found):
    return question.at_best(found, gradients, "questions")


QUESTIONS = (
    Question("starts", starts, start_table, metric="loss"),
    Question("arrivals", arrivals, arrival_table, every_rate=True, metric="loss"),
    Question("gradients", gradients, gradient_table),
)
