"""LoRA+: the ratio of B's learning rate to A's, each at the best of three rates of A.

Rates are A's; where the ratio is larger they are lower, so that the grid follows what learns. Its
figure is η_A × η_B in the paper's toy (its figure 2, made by experiments.claims) and on `math`.
"""
import statistics

import curves
from experiments import claims, compare, question, sweep

RATES = {1: (2.5e-3, 5e-3, 1e-2), 2: (1.75e-3, 3.5e-3, 7e-3), 4: (1.25e-3, 2.5e-3, 5e-3),
         8: (1e-3, 2e-3, 4e-3), 16: (1e-3, 2e-3, 4e-3), 64: (2.5e-4, 5e-4, 1e-3)}


def variant(ratio, rates):
    if ratio == 1:
        return question.Variant("lora", rates)
    return question.Variant("loraplus", rates, question.flag("lr_ratio", ratio, 16),
                            always=rates[1:2])


VARIANTS = {f"ratio {ratio}": variant(ratio, rates) for ratio, rates in RATES.items()}


def toy_losses(step):
    """The toy's rates, and its median test loss at [B's rate][A's rate]; inf where it diverges."""
    rows = [row for row in sweep.read(claims.RESULTS / "toy.csv") if row["step"] == str(step)]
    losses = {}
    for row in rows:
        losses.setdefault((float(row["lr_B"]), float(row["lr_A"])), []).append(float(row["loss"]))
    rates = sorted({lr for lr, _ in losses})
    return rates, [[statistics.median(losses[B, A]) for A in rates] for B in rates]


def draw_toy(panel, step):
    """A field for each pair of rates, its colour the loss, white where it diverges."""
    rates, losses = toy_losses(step)
    half = (rates[1] / rates[0]) ** 0.5
    edges = [rates[0] / half, *(lr * half for lr in rates)]
    fields = panel.pcolormesh(edges, edges, losses, norm="log", cmap="viridis_r", vmin=0.01, vmax=1)
    panel.axline((1e-2, 1e-2), (1, 1), color="dimgray", linestyle=":", lw=1)
    panel.set(xscale="log", yscale="log", xlabel="A's learning rate", ylabel="B's learning rate",
              title=f"toy, {step} steps")
    panel.grid(False)
    bar = panel.figure.colorbar(fields, ax=panel, label="test loss")
    bar.solids.set_rasterized(True)  # a small picture in place of 256 rectangles


def draw(found):
    figure, panels = curves.new_figure(20, 5.5, panels=3)
    for panel, step in zip(panels, (10, 200)):
        draw_toy(panel, step)
    draw_math(panels[2], found)
    for panel in figure.axes:
        panel.minorticks_off()
    return figure


def draw_math(panel, found):
    """A disc for each pair of rates, its colour what the first seed learned there."""
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
              xlim=(1.5e-4, 3e-2), ylim=(1.5e-3, 0.12), title="math")
    bar = panel.figure.colorbar(discs, ax=panel, label=curves.learned("exact match"))
    bar.solids.set_rasterized(True)
    bar.ax.yaxis.set_major_formatter("{x:.0%}")


QUESTION = question.Question("ratios", VARIANTS, draw=draw)

if __name__ == "__main__":
    question.ask(QUESTION)
