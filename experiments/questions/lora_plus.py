"""LoRA+ (arXiv 2402.12354): the ratio of B's learning rate to A's."""
import math

from data.files import read_csv
from experiments import claims, compare, plot, question
from experiments.question import Question, Variant, flag

# ==== Which ratio is best? ========================================================================

# The rates are A's. They are lower where the ratio is larger.
RATES = {1: (2.5e-3, 5e-3, 1e-2), 2: (1.75e-3, 3.5e-3, 7e-3), 4: (1.25e-3, 2.5e-3, 5e-3),
         8: (1e-3, 2e-3, 4e-3), 16: (1e-3, 2e-3, 4e-3), 64: (2.5e-4, 5e-4, 1e-3)}
ratios = {"1": Variant("lora", RATES[1])}
ratios |= {str(ratio): Variant("loraplus", rates, flag("lr_ratio", ratio, 16), always=rates[1:2])
           for ratio, rates in RATES.items() if ratio > 1}


def draw_ratios(found):
    """The loss by η_A × η_B in the paper's toy (experiments.claims), and what math learned."""
    figure, panels = plot.new_figure(20, 5.5, panels=3)
    for panel, step in zip(panels, (10, 200)):
        draw_toy(panel, step)
    draw_math(panels[2], found)
    for panel in figure.axes:
        panel.minorticks_off()
    return figure


def draw_toy(panel, step):
    """A square for each pair of rates, coloured by the mean test loss; white where it diverges."""
    losses = claims.mean_losses(read_csv(question.RESULTS / "toy.csv"), step)
    rates = sorted({lr for lr, _ in losses})
    field = [[losses[lr_A, lr_B] for lr_A in rates] for lr_B in rates]
    half = (rates[1] / rates[0]) ** 0.5
    edges = [rates[0] / half, *(lr * half for lr in rates)]
    squares = panel.pcolormesh(edges, edges, field, norm="log", cmap="viridis_r", vmin=1e-2, vmax=1)
    best = min(losses, key=losses.get)
    panel.plot(*best, "x", color="white", markersize=12, markeredgewidth=3)
    panel.axline((1e-2, 1e-2), (1, 1), color="dimgray", linestyle=":", lw=1)
    panel.set(xscale="log", yscale="log", xlabel="A's learning rate", ylabel="B's learning rate",
              title=f"toy, {step} steps")
    panel.grid(False)
    bar = panel.figure.colorbar(squares, ax=panel, label="test loss")
    bar.solids.set_rasterized(True)  # one small image in place of 256 rectangles


def draw_math(panel, found):
    """A disc for each pair of rates, coloured by what the first seed learned."""
    for ratio in RATES:
        rates = {lr: results[0]["learned"]
                 for lr, results in compare.at_rates(found, str(ratio)).items()}
        discs = panel.scatter(list(rates), [ratio * lr for lr in rates], c=list(rates.values()),
                              s=700, cmap="viridis", vmin=0, vmax=1)
        for lr, learned in rates.items():
            panel.text(lr, ratio * lr, f"{100 * learned:.0f}", ha="center", va="center",
                       fontsize=12, color="black" if learned > 0.5 else "white")
    panel.axline((1e-3, 1e-3), (1e-2, 1e-2), color="dimgray", linestyle=":", lw=1)
    panel.set(xscale="log", yscale="log", xlabel="A's learning rate", ylabel="B's learning rate",
              xlim=(1.5e-4, 3e-2), ylim=(1.5e-3, 0.12), title="math")
    bar = panel.figure.colorbar(discs, ax=panel, label=plot.learned("exact match"))
    bar.solids.set_rasterized(True)
    bar.ax.yaxis.set_major_formatter("{x:.0%}")


# ==== Are LoRA+ and LoRA-GA faster than LoRA? =====================================================

RUNS = {  # name: method, learning rate, steps between two evaluations
    "LoRA": ("lora", 5e-3, 20),
    "LoRA+": ("loraplus", 2e-3, 20),
    "LoRA-GA": ("loraga", 1e-3, 20),
    "LoRA, every 100 steps": ("lora", 5e-3, 100),
    "LoRA-GA, every 100 steps": ("loraga", 2e-3, 100),
}
speed = {name: Variant(method, (lr,), f"--eval_interval {every}" if every == 20 else "")
         for name, (method, lr, every) in RUNS.items()}


def speed_table(found):
    rows = []
    for name in speed:
        [(lr, results)] = compare.at_rates(found, name).items()
        early = [result["early"] for result in results]
        row = [name, f"{lr:g}", "–" if math.isnan(early[0]) else compare.spread(early, "{:.3f}")]
        for level in (0.5, 0.9):
            steps = [question.steps_to([point[:2] for point in result["path"]], level,
                                       result["metric"]) for result in results]
            row.append(compare.spread(steps, "{:.0f}"))
        rows.append(row)
    header = ["method", "lr", "loss of steps 1–50", "steps to 50 %", "steps to 90 %"]
    return compare.markdown(header, rows)


QUESTIONS = (
    Question("ratios", ratios, "ratio η_B/η_A", draw=draw_ratios),
    Question("speed", speed, speed_table),
)
