"""LoRA-GA (arXiv 2407.05000): the direction of the start, its size, and the number of samples."""
from experiments import compare
from experiments.question import Question, Variant

# ==== Direction or size? ==========================================================================

# All starts have LoRA-GA's scale s. Their factors are as large as LoRA-GA's, or zero, except in the
# first start and in the "small" one, whose factors are as large as LoRA's A.
# name: flags of experiments.variant; flags of train.py; AdamW's rate at which the first seed began
# fastest
STARTS = {
    "LoRA's: A random, B = 0": ("", "--init kaiming", 8e-3),
    "A random and large, B = 0": ("--start large-A", "", 8e-3),
    "A along the gradient, B = 0": ("--start aligned-A", "", 4e-3),
    "A = 0, B along the gradient": ("--start aligned-B", "", 4e-3),
    "both Gaussian": ("--start gaussian", "", 8e-3),
    "both orthonormal at random": ("--start orthonormal", "", 4e-3),
    "both along the gradient, small": ("--start small", "", 4e-3),
    "both along the gradient: LoRA-GA's": ("", "", 2e-3),
}
OPTIMIZERS = {  # its flag, learning rates, steps
    "SGD": ("--optimizer sgd", (0.03, 0.1, 0.3, 1), 100),
    "AdamW": ("", (5e-4, 1e-3, 2e-3, 4e-3, 8e-3), 300),
}


def start_variant(optimizer, start):
    of_optimizer, rates, steps = OPTIMIZERS[optimizer]
    of_start, flags, fastest = STARTS[start]
    own = " ".join(filter(None, (of_optimizer, of_start)))
    return Variant("loraga", rates, f"{flags} --steps {steps} --eval_interval {steps // 2}",
                   f"experiments.variant {own}" if own else "",
                   always=(fastest,) if optimizer == "AdamW" else ())


starts = {f"{optimizer}; {start}": start_variant(optimizer, start)
          for optimizer in OPTIMIZERS for start in STARTS}


def start_table(found):
    """The loss at the end, at the best rate; and AdamW's in the beginning, at the best for that."""
    rows = []
    for start in STARTS:
        tried = {optimizer: compare.at_rates(found, f"{optimizer}; {start}")
                 for optimizer in OPTIMIZERS}
        ends = [compare.learned(compare.at_best(rates)[1]) for rates in tried.values()]
        seeds = max(map(len, tried["AdamW"].values()))
        begins = [results for results in tried["AdamW"].values() if len(results) == seeds]
        fastest = min(begins, key=lambda results: compare.median(results, "early"))
        rows.append([start, *ends, compare.of_seeds(fastest, "early")])
    header = [f"{optimizer}: loss after {steps}" for optimizer, (_, _, steps) in OPTIMIZERS.items()]
    return compare.markdown(["start", *header, "AdamW: mean loss of steps 1–50"], rows)


# ==== How many samples? ===========================================================================

gradients = {
    "32": Variant("loraga", (1e-3,), module="experiments.variant --gradient_batches 1"),
    "128": Variant("loraga", (1e-3,)),
    "2048": Variant("loraga", (1e-3,), module="experiments.variant --gradient_batches 64"),
}


QUESTIONS = (
    Question("starts", starts, start_table, metric="loss"),
    Question("gradients", gradients, "questions"),
)
