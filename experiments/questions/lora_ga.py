"""LoRA-GA (arXiv 2407.05000): the direction of the start, its size, and the number of samples."""
import statistics
from dataclasses import replace

from experiments import compare, question, sweep
from experiments.question import Question, Variant

# ==== Direction or size? ==========================================================================

# All starts have LoRA-GA's scale s. Their factors are as large as LoRA-GA's, or zero, except in the
# first start and in the "small" one, whose factors are as large as LoRA's A.
# name: flags of experiments.variant, flags of train.py, and the AdamW rates at which the first seed
# began fastest and ended lowest
STARTS = {
    "LoRA's: A random, B = 0": ("", "--init kaiming", (8e-3, 4e-3)),
    "A random and large, B = 0": ("--start large-A", "", (8e-3, 4e-3)),
    "A along the gradient, B = 0": ("--start aligned-A", "", (4e-3, 2e-3)),
    "A = 0, B along the gradient": ("--start aligned-B", "", (4e-3, 8e-3)),
    "both Gaussian": ("--start gaussian", "", (8e-3, 2e-3)),
    "both orthonormal at random": ("--start orthonormal", "", (4e-3,)),
    "both along the gradient, small": ("--start small", "", (4e-3,)),
    "both along the gradient: LoRA-GA's": ("", "", (2e-3, 1e-3)),
}
OPTIMIZERS = {  # its flag, learning rates, steps
    "sgd": ("--optimizer sgd", (0.03, 0.1, 0.3, 1), 100),
    "adamw": ("", (5e-4, 1e-3, 2e-3, 4e-3, 8e-3), 300),
}


def start_variant(optimizer, start, rates, evaluations):
    of_optimizer, _, steps = OPTIMIZERS[optimizer]
    of_start, flags, *_ = STARTS[start]
    own = " ".join(filter(None, (of_optimizer, of_start)))
    flags = f"{flags} --steps {steps} --eval_interval {steps // evaluations}"
    return Variant("loraga", rates, flags, f"experiments.variant {own}" if own else "")


starts = {f"end, {optimizer}; {start}": start_variant(optimizer, start, tried, 2)
          for optimizer, (_, tried, _) in OPTIMIZERS.items() for start in STARTS}
for start, (_, _, tried) in STARTS.items():
    variant = start_variant("adamw", start, tried, 1)
    starts[f"begin, adamw; {start}"] = replace(variant, always=tried)


def start_table(found):
    """The loss at the end, at the best rate; and with AdamW the beginning, at the best for that."""
    rows = []
    for start in STARTS:
        _, ends = zip(*(question.best(compare.at_rates(found, f"end, {optimizer}; {start}"))
                        for optimizer in OPTIMIZERS))
        begins = compare.at_rates(found, f"begin, adamw; {start}").values()
        early = min(compare.median(results, "early") for results in begins)
        steps = min(statistics.median(steps_below(result, 0.7) for result in results)
                    for results in begins)
        rows.append([start, *map(question.short, ends), f"{early:.2f}", f"{steps:.0f}"])
    return compare.markdown(["start", "SGD: loss after 100", "AdamW: after 300",
                             "mean of steps 1–50", "steps to 0.7"], rows)


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
    Question("gradients", gradients, gradient_table),
)
