"""LoRA-GA: is it the direction of the start, or its magnitude?

Eight starts with the same scale s, each at the learning rate with which the loss of held-out
completions ends lowest. Gradient descent, with train.py's clipping and schedule, for 100 steps;
AdamW for 300. How fast each begins: experiments.arrivals.
"""
from experiments import compare, question

STARTS = {  # name: flags of experiments.variant, flags of train.py; all have LoRA-GA's scale s,
    # "large" is as large as its factors, "small" as LoRA's A
    "LoRA's: A small and random, B = 0": ("", "--init kaiming"),
    "A large and random, B = 0": ("--start large-A", ""),
    "A along the gradient, B = 0": ("--start aligned-A", ""),
    "A = 0, B along the gradient": ("--start aligned-B", ""),
    "both Gaussian, large": ("--start gaussian", ""),
    "both orthonormal at random, large": ("--start orthonormal", ""),
    "both along the gradient, small": ("--start small", ""),
    "both along the gradient, large: LoRA-GA": ("", ""),
}
OPTIMIZERS = {  # name: its flag, learning rates, steps
    "sgd": ("--optimizer sgd", (0.03, 0.1, 0.3, 1), 100),
    "adamw": ("", (5e-4, 1e-3, 2e-3, 4e-3, 8e-3), 300),
}


def variant(optimizer, start, rates=None, evaluations=2):
    of_optimizer, all_rates, steps = OPTIMIZERS[optimizer]
    of_start, flags = STARTS[start]
    own = " ".join(filter(None, (of_optimizer, of_start)))
    return question.Variant(
        "loraga", rates or all_rates,
        f"{flags} --steps {steps} --eval_interval {steps // evaluations}",
        module=f"experiments.variant {own}" if own else "")


VARIANTS = {f"{optimizer}; {start}": variant(optimizer, start)
            for optimizer in OPTIMIZERS for start in STARTS}


def text(found):
    tables = []
    for optimizer, (_, _, steps) in OPTIMIZERS.items():
        rows = []
        for start in STARTS:
            lr, results = compare.best(compare.at_rates(found, f"{optimizer}; {start}"))
            rows.append([start, compare.spread(results, "loss", "{:.3f}"), lr])
        header = [f"{optimizer}; start", f"held-out loss after {steps}", "at lr"]
        tables.append(compare.markdown(header, rows))
    return "\n\n".join(tables)


QUESTION = question.Question("starts", VARIANTS, metric="loss", text=text)

if __name__ == "__main__":
    question.ask(QUESTION)
