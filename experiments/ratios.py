"""LoRA+: the ratio of B's learning rate to A's, each at the best of three rates of A.

Rates are A's; where the ratio is larger they are lower, so that the grid follows what learns. Its
figure is η_A × η_B on `math`, of which the paper's toy is in experiments.claims.
"""
import curves
from experiments import compare, question

RATES = {1: (2.5e-3, 5e-3, 1e-2), 2: (1.75e-3, 3.5e-3, 7e-3), 4: (1.25e-3, 2.5e-3, 5e-3),
         8: (1e-3, 2e-3, 4e-3), 16: (1e-3, 2e-3, 4e-3), 64: (2.5e-4, 5e-4, 1e-3)}


def variant(ratio, rates):
    if ratio == 1:
        return question.Variant("lora", rates)
    return question.Variant("loraplus", rates, question.flag("lr_ratio", ratio, 16),
                            always=rates[1:2])


VARIANTS = {f"ratio {ratio}": variant(ratio, rates) for ratio, rates in RATES.items()}


def draw(found):
    """A disc for each pair of rates, its colour what the first seed learned there."""
    figure, panel = curves.new_figure(8, 6)
    for ratio in RATES:
        rates = {lr: results[0] for lr, results in
                 compare.at_rates(found, f"ratio {ratio}").items()}
        B = [ratio * lr for lr in rates]
        learned = [result["learned"] for result in rates.values()]
        discs = panel.scatter(list(rates), B, c=learned, s=700, cmap="viridis", vmin=0, vmax=1)
        for lr, lr_B, share in zip(rates, B, learned):
            panel.text(lr, lr_B, f"{100 * share:.0f}", ha="center", va="center", fontsize=12,
                       color="black" if share > 0.5 else "white")
    panel.axline((1e-3, 1e-3), (1e-2, 1e-2), color="dimgray", linestyle=":", lw=1)
    panel.set(xscale="log", yscale="log", xlabel="A's learning rate", ylabel="B's learning rate",
              xlim=(1.5e-4, 3e-2), ylim=(1.5e-3, 0.12))
    bar = figure.colorbar(discs, ax=panel, label=curves.learned("exact match"))
    bar.ax.yaxis.set_major_formatter("{x:.0%}")
    return figure


QUESTION = question.Question("ratios", VARIANTS, draw=draw)

if __name__ == "__main__":
    question.ask(QUESTION)
