"""Is preconditioned training robust to the learning rate? The curve that its paper lacks.

The loss of the held-out completions after 200 steps, over three decades of learning rates:
gradient descent and AdamW, with and without the preconditioner, ranks 1 and 8, same betas.
"""
import statistics

import curves
from experiments import compare, question

RATES = {"sgd": (0.03, 0.1, 0.3, 1, 3, 10, 30), "adamw": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1)}
CASES = [(optimizer, rank) for optimizer in RATES for rank in (1, 8)]
NAMES = {"lora": "plain", "riemannian": "preconditioned"}
NEAR = (1.1, 1.25)  # times the best loss: how bad may a usable rate be?


def name(optimizer, rank, method):
    return f"{optimizer}, r {rank}, {NAMES[method]}"


VARIANTS = {
    name(optimizer, rank, method): question.Variant(
        method, RATES[optimizer], f"--rank {rank} --steps 200 --eval_interval 200",
        module="experiments.variant --optimizer sgd" if optimizer == "sgd" else "")
    for optimizer, rank in CASES for method in NAMES}


def losses_of(found, variant):
    return {lr: compare.median(results, "loss")
            for lr, results in compare.at_rates(found, variant).items()}


def usable(losses, limit):
    """The factor over which the rates around the best have a loss of `limit` at most, in words: at
    least so much, where the rates that were tried end before the good ones do."""
    at, rates = min(losses, key=losses.get), list(losses)
    low = high = rates.index(at)
    while low > 0 and losses[rates[low - 1]] <= limit:
        low -= 1
    while high + 1 < len(rates) and losses[rates[high + 1]] <= limit:
        high += 1
    cut = low == 0 or high + 1 == len(rates)
    return f"{'≥ ' * cut}× {rates[high] / rates[low]:.0f}"


def text(found):
    header = ["optimizer, rank", "best loss", "at lr", "rates within 10 % of it", "within 25 %",
              "within 25 % of the higher of the two"]
    rows = []
    for case in CASES:
        tried = {method: losses_of(found, name(*case, method)) for method in NAMES}
        higher = max(min(losses.values()) for losses in tried.values())
        for method, losses in tried.items():
            least = min(losses.values())
            limits = [*(near * least for near in NEAR), NEAR[-1] * higher]
            rows.append([name(*case, method), f"{least:.3f}", f"{min(losses, key=losses.get):g}",
                         *(usable(losses, limit) for limit in limits)])
    return compare.markdown(header, rows)


def draw(found):
    figure, panels = curves.new_figure(16, 4.5, panels=4)
    for panel, (optimizer, rank) in zip(panels, CASES):
        for method in NAMES:
            color, line, marker = compare.LOOKS[method]
            rates = compare.at_rates(found, name(optimizer, rank, method))
            losses = [statistics.median(min(result["loss"], 4) for result in results)
                      for results in rates.values()]
            panel.plot(list(rates), losses, color=color, linestyle=line, marker=marker,
                       label=NAMES[method])
        panel.set(xscale="log", ylim=(0, 4.1), xlabel="learning rate",
                  title=f"{optimizer}, rank {rank}")
    panels[0].set_ylabel("loss after 200 steps (4: or more)")
    curves.name_lines(figure, panels[0])
    return figure


QUESTION = question.Question("robustness", VARIANTS, every_rate=True, metric="loss", text=text,
                             draw=draw)

if __name__ == "__main__":
    question.ask(QUESTION)
